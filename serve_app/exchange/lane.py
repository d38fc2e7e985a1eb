"""What an exchange needs of the lane it runs in: which models there are, what answers, what checks images.

A lane is the ingress (every model) or one model's own HTTP app; dialects can't tell which.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from serve_app.access.admission import Admission
from serve_app.access.budget import Budget
from serve_app.access.keys import Key, Keyring
from serve_app.access.running import Running
from serve_app.config.http import HttpConfig
from serve_app.errors import Forbidden, ModelNotReady, UnknownModel
from serve_app.images.gate import ImageGate, ImageSource
from serve_app.messages import ModelHandle, RgbImage, Task
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import Catalog, ModelEntry, first_able
from serve_app.strict import nearest_hint


@dataclass(frozen=True, slots=True)
class Lane:
    """Made once per process by `deployments/`; every exchange of the process shares it."""

    config: HttpConfig
    catalog: Catalog
    handle: ModelHandle
    images: ImageGate
    metrics: Metrics
    keys: Keyring
    budget: Budget
    admission: Admission
    running: Running
    cancel_elsewhere: Callable[[str, Key | None], Awaitable[bool]]
    heed_others: Callable[[], Coroutine[Any, Any, None]]  # runs for as long as the lane is open
    secret: str | None = None  # by which HAProxy is known where it says what it has drawn
    lane_table: Callable[[], str] | None = None  # what HAProxy asks of an ingress; None in a model's own lane

    def choose(
        self,
        name: str | None,
        task: Task,
        key: Key | None,
        *,
        with_images: bool = False,
        drawn: str | None = None,
    ) -> ModelEntry:
        """The model that will answer this key: the one it names, or the task's first that it may use.

        With `with_images` a default is one that takes images, if there is any. `drawn` is the model that HAProxy has
        drawn for the name. Raises `Forbidden`, and what `Catalog.choose` does.
        """
        try:
            return self._choose(name, task, key, with_images, drawn)
        except ModelNotReady as exc:
            raise self.discreet(exc, key) from None

    def _choose(
        self, name: str | None, task: Task, key: Key | None, with_images: bool, drawn: str | None
    ) -> ModelEntry:
        if name is None or drawn is None or not self.catalog.may_answer_for(name, drawn):
            drawn = None
        if name is not None and drawn is None and self._means_default(name):
            name = None
        if key is None or key.models is None:
            return self.catalog.choose(drawn or name, task, with_images=with_images)
        if name is None:
            first = first_able(self.visible(key), task, with_images)
            if first is None:
                raise Forbidden(f"this key may use no model that does {task}: ask for another key", "model")
            name = first.name
        if not key.may_use(name):
            if drawn is None:
                self.catalog.find(name)  # a model that doesn't exist is unknown to every key alike
            message = f"this key may not use model '{name}'{nearest_hint(name, sorted(key.models))}"
            raise Forbidden(message, "model").about(name)
        return self.catalog.choose(drawn or name, task, with_images=with_images)

    def _means_default(self, name: str) -> bool:
        """Whether no model is meant. The hub's client for Node sends the address that it was given as the model."""
        if name not in self.config.default_model_names and not name.startswith(("http://", "https://")):
            return False
        try:
            self.catalog.find(name)
        except UnknownModel:
            return True
        return False

    def visible(self, key: Key | None) -> list[ModelEntry]:
        """The models that this key may use."""
        return [entry for entry in self.catalog.entries() if key is None or key.may_use(entry.name)]

    def may_see_all(self, key: Key | None) -> bool:
        """Whether this key may see all: an administrator's may; without any keys, everybody may."""
        return self.keys.is_open if key is None else key.is_admin

    def discreet(self, error: ModelNotReady, key: Key | None) -> ModelNotReady:
        """The error without its reason, unless this key may read it."""
        return error if self.may_see_all(key) else error.for_strangers()

    async def load_image(self, model: ModelEntry, source: ImageSource, param: str) -> RgbImage:
        """An image from a stranger as safe pixels, as many as the model uses, timed and counted.

        Raises the image gate's errors.
        """
        edge = model.description.image_edge if model.description else None
        with self.metrics.image(model.name):
            return await self.images.load(source, param, edge)
