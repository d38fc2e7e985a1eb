"""The catalog of a model's direct lane: one model, its adapters, always ready, because its own process asks."""

import time
from dataclasses import replace

from serve_app.errors import UnknownModel, UnsupportedTask
from serve_app.messages import ModelDescription, Task
from serve_app.models.entry import ModelEntry
from serve_app.strict import nearest_hint


class SingleModelCatalog:
    """Knows the model called `name` and its adapters; requests that name no model mean the model itself."""

    refused_config: str | None = None

    def __init__(self, name: str, description: ModelDescription) -> None:
        model = ModelEntry(name, "ready", None, description, int(time.time()), num_replicas=1)
        alone = replace(description, adapters=())
        adapters = [replace(model, name=adapter, description=alone, base=name) for adapter in description.adapters]
        self._model = model
        self._entries = {entry.name: entry for entry in (model, *adapters)}

    def entries(self) -> list[ModelEntry]:
        return list(self._entries.values())

    def find(self, name: str) -> ModelEntry:
        if name not in self._entries:
            hint = nearest_hint(name, list(self._entries))
            raise UnknownModel(f"model '{name}' isn't served at this address{hint}", "model")
        return self._entries[name]

    def choose(self, name: str | None, task: Task, *, with_images: bool = False) -> ModelEntry:
        entry = self._model if name is None else self.find(name)
        if not entry.may_serve(task):
            wrong = f"model '{entry.name}' doesn't do {task}: ask another model"
            raise UnsupportedTask(wrong, "model").about(entry.name)
        return entry

    def may_answer_for(self, name: str, model: str) -> bool:
        return model in self._entries  # which aliases lead here is the ingress's to know, and it told the proxy

    def can_serve(self, entry: ModelEntry) -> bool:
        return entry.is_ready

    def has_served(self, entry: ModelEntry) -> bool:
        return True
