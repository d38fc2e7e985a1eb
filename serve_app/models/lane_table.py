"""Which names lead straight to which model's own lane, for HAProxy: a table that it asks for twice a second.

A name is in it for a task where the lane would answer as the ingress does: its model is ready, does the task, and
serves HTTP by the same rules. What isn't in it goes to the ingress.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import get_args

from serve_app.messages import Task
from serve_app.models.entry import ModelEntry, first_able

_AS_ASKED = "="  # the model's name is the one that was asked for
_NO_LANE = "- -"


def lane_table(
    entries: Sequence[ModelEntry],
    can_serve: Callable[[ModelEntry], bool],
    stand_ins: Sequence[str],
    fingerprint: str,
) -> str:
    """A line for each task and name: both, then each model that may answer with weight, backend and balancing.

    `entries` are a catalog's, aliases among them; `stand_ins` are names that mean a task's default, `fingerprint` is
    that of the ingress's own rules. Tabs part a line, and spaces what belongs to one model.
    """
    models = {entry.name: entry for entry in entries if not entry.weights}
    shared = Counter(backend_name(entry.name) for entry in models.values() if not entry.base)

    def lane(entry: ModelEntry, task: Task) -> str | None:
        name, description = backend_name(entry.base or entry.name), entry.description
        is_there = entry.state == "ready" and entry.num_replicas > 0 and entry.may_serve(task)
        if not is_there or description is None or description.http != fingerprint or shared[name] > 1:
            return None
        return f"{name} {description.balancing}"

    def lines(task: Task) -> Iterator[str]:
        for entry in entries:
            if entry.weights:
                drawn = _drawn(entry.weights, models, can_serve, task)
                choices = [(f"{model.name} {weight:.9g}", lane(model, task)) for model, weight in drawn]
            else:
                choices = [(f"{_AS_ASKED} 1", lane(entry, task))]
            if any(chosen for _, chosen in choices):
                yield "\t".join((task, entry.name, *(f"{drawn} {chosen or _NO_LANE}" for drawn, chosen in choices)))
        default = first_able(models.values(), task, with_images=False)
        if default is not None and default is first_able(models.values(), task, with_images=True):
            for name in stand_ins:
                if (chosen := lane(default, task)) and name not in {entry.name for entry in entries}:
                    yield f"{task}\t{name}\t{default.name} 1 {chosen}"

    return "".join(f"{line}\n" for task in get_args(Task) for line in lines(task))


def backend_name(application: str) -> str:
    """HAProxy's name for an application's replicas, as Ray Serve makes it."""
    return "http-" + re.sub(r"[^A-Za-z0-9._-]+", "_", application.replace("#", "-").replace("/", "."))


def _drawn(
    weights: Mapping[str, float],
    models: Mapping[str, ModelEntry],
    can_serve: Callable[[ModelEntry], bool],
    task: Task,
) -> list[tuple[ModelEntry, float]]:
    """An alias's models that the ingress would draw from, with their weights."""
    able = [models[name] for name, weight in weights.items() if weight and can_serve(models[name])]
    able = [model for model in able if model.may_serve(task)]
    return [(model, weights[model.name]) for model in [m for m in able if m.is_ready] or able]
