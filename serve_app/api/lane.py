"""What a dialect needs of the lane it stands in: which models there are, what answers, what checks pictures.

A lane is the ingress (every model) or one model's own HTTP app; dialects can't tell which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve_app.config import HttpConfig
from serve_app.errors import UnsupportedTask
from serve_app.images import ImageGate, ImageSource
from serve_app.messages import ModelDescription, ModelHandle, Picture, Task
from serve_app.metrics.registry import Metrics

State = Literal["pending", "loading", "ready", "scaled_to_zero", "unhealthy", "failed"]
READY_STATES: frozenset[State] = frozenset({"ready", "scaled_to_zero"})


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as the lane knows it. `description` is None until a replica has told it once.

    Until then `declared_tasks` are known, where the model's args name any.
    """

    name: str
    state: State
    reason: str | None = None
    description: ModelDescription | None = None
    created_s: int = 0
    base: str | None = None  # of an adapter: the model that it changes
    num_replicas: int = 0  # that can answer now
    weights: Mapping[str, float] | None = None  # of an alias: the share of requests that each model gets
    declared_tasks: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return self.state in READY_STATES

    def may_serve(self, task: Task) -> bool:
        tasks = self.description.tasks if self.description else self.declared_tasks
        return not tasks or task in tasks

    def require_pictures(self, param: str) -> None:
        """Raise `UnsupportedTask` if this model is known to read text only."""
        if self.description is not None and not self.description.takes_pictures:
            raise UnsupportedTask(f"{param}: model '{self.name}' reads text only: send it no pictures", param)

    def as_json(self) -> dict[str, Any]:
        """The entry of `/v1/models`: OpenAI's four fields, then ours."""
        known = self.description
        entry = {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "serve_app",
            "state": self.state,
            "tasks": list(known.tasks if known else self.declared_tasks) or None,
            "engine": known.engine if known else None,
            "context_length": known.context_length if known else None,
            "picture_limit": known.picture_limit if known else None,
            "replicas": self.num_replicas,
        }
        if self.base:
            entry |= {"root": self.base, "parent": self.base}  # vLLM's names for it
        if self.weights:
            entry["weights"] = dict(self.weights)
        return entry | ({"reason": self.reason} if self.reason else {})


class Catalog(Protocol):
    """The models of a lane. `refused_config` says what is wrong with a newer list of them; None where it holds."""

    refused_config: str | None

    def entries(self) -> list[ModelEntry]:
        """Every model, in the configured order: the first of a task is its default."""
        ...

    def find(self, name: str) -> ModelEntry:
        """The model of that name, in whatever state. Raises `UnknownModel` with the nearest names."""
        ...

    def choose(self, name: str | None, task: Task) -> ModelEntry:
        """The model that will answer: the named one, or the task's default.

        Raises `UnknownModel`, `UnsupportedTask`, or `ModelNotReady` where it has never been ready or failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lane:
    """Made once per process by `app.py` and handed to every dialect."""

    config: HttpConfig
    catalog: Catalog
    handle: ModelHandle
    images: ImageGate
    metrics: Metrics

    async def load_picture(self, model: ModelEntry, source: ImageSource, param: str) -> Picture:
        """A picture from a stranger as safe pixels, as many as the model uses, timed and counted.

        Raises the image gate's errors.
        """
        edge = model.description.picture_edge if model.description else None
        with self.metrics.image(model.name):
            return await self.images.load(source, param, edge)
