"""A model as a lane sees it, and the protocol of a lane's catalog.

Knows nothing of HTTP, and nothing of where the list comes from.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve_app.errors import UnsupportedTask
from serve_app.messages import ModelDescription, Task

State = Literal["pending", "loading", "ready", "scaled_to_zero", "unhealthy", "failed"]


READY_STATES: frozenset[State] = frozenset({"ready", "scaled_to_zero"})
_AT_HAND = 1 / 8  # of what runs, so that no replica lacks work and Ray Serve sees the need for more


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as the lane knows it. `description` is None until a replica has sent it once.

    Until then `declared_tasks` and `declared_family` are known, where the model's args name any.
    """

    name: str
    state: State
    reason: str | None = None
    description: ModelDescription | None = None
    created_s: int = 0
    base: str | None = None  # of an adapter: the model that it changes
    num_replicas: int = 0  # that can answer now
    num_starting: int = 0
    weights: Mapping[str, float] | None = None  # of an alias: the share of requests that each model gets
    declared_tasks: tuple[str, ...] = ()
    declared_family: str | None = None

    @property
    def family(self) -> str | None:
        """How it is prompted for captions, if that is known."""
        return self.description.family if self.description else self.declared_family

    @property
    def is_ready(self) -> bool:
        return self.state in READY_STATES

    def may_serve(self, task: Task) -> bool:
        tasks = self.description.tasks if self.description else self.declared_tasks
        return not tasks or task in tasks

    @property
    def may_take_images(self) -> bool:
        """Whether it takes images, as far as that is known."""
        return self.description is None or self.description.takes_images

    def require_images(self, param: str) -> None:
        """Raise `UnsupportedTask` if this model is known to read text only."""
        if not self.may_take_images:
            raise UnsupportedTask(f"{param}: model '{self.name}' reads text only: send it no images", param)

    def as_json(self, *, with_reason: bool) -> dict[str, Any]:
        """The entry of `/v1/models`: OpenAI's four fields, then ours. A reason may name folders and nodes."""
        description = self.description
        entry = {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "serve_app",
            "state": self.state,
            "tasks": list(description.tasks if description else self.declared_tasks) or None,
            "engine": description.engine if description else None,
            "context_length": description.context_length if description else None,
            # vLLM's names, for its clients: `vllm bench serve` takes the tokenizer that `root` names.
            "root": self.base or (description and description.hub_id) or self.name,
            "max_model_len": description.context_length if description else None,
            "image_limit": description.image_limit if description else None,
            "replicas": self.num_replicas,
            "version": description.version if description else None,
        }
        if description and description.version_note and with_reason:
            entry["version_note"] = description.version_note
        if self.base:
            entry["parent"] = self.base
        if self.weights:
            entry["weights"] = dict(self.weights)
        return entry | ({"reason": self.reason} if self.reason and with_reason else {})


def num_places(num_at_once: int, num_replicas: int) -> int:
    """How many requests a model takes at once with so many replicas, each of which runs `num_at_once`.

    A few more than run: so that no replica lacks work, and so that Ray Serve wakes one where there is none.
    """
    return num_at_once * num_replicas + math.ceil(_AT_HAND * num_at_once * max(1, num_replicas))


def first_able(entries: Iterable[ModelEntry], task: Task, with_images: bool) -> ModelEntry | None:
    """A task's default among these: the first, or `with_images` the first that takes images if any does."""
    able = [entry for entry in entries if entry.may_serve(task)]
    return next((entry for entry in able if entry.may_take_images or not with_images), able[0] if able else None)


class Catalog(Protocol):
    """The models of a lane. `refused_config` says what is wrong with a newer list; None if it was accepted."""

    refused_config: str | None

    def entries(self) -> list[ModelEntry]:
        """Every model, in the configured order: the first of a task is its default."""
        ...

    def find(self, name: str) -> ModelEntry:
        """The model of that name, in whatever state. Raises `UnknownModel` with the nearest names."""
        ...

    def choose(self, name: str | None, task: Task, *, with_images: bool = False) -> ModelEntry:
        """The model that will answer: the named one, or the task's default, which `with_images` takes images.

        Raises `UnknownModel`, `UnsupportedTask`, or `ModelNotReady` where it has never been ready or failed.
        """
        ...

    def may_answer_for(self, name: str, model: str) -> bool:
        """Whether requests for `name` may be answered by this model, where a proxy has drawn it."""
        ...

    def can_serve(self, entry: ModelEntry) -> bool:
        """Whether requests for it are taken, now or soon."""
        ...

    def has_served(self, entry: ModelEntry) -> bool:
        """Whether this process has seen it ready."""
        ...
