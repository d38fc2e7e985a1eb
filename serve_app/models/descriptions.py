"""The replicas' descriptions of their models. All are asked at once, so that a silent one delays nobody.

A replica that has all its hands full is as silent as one that hangs: it tells when it is its turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from serve_app.errors import ServeAppError
from serve_app.messages import ModelDescription

PATIENCE_S = 1.0  # for all that are asked together; `on_late` reports what comes later
TIMEOUT_S = 30.0

Describe = Callable[[str], Awaitable[ModelDescription]]
Version = tuple[float, bool]


class Descriptions:
    """The last description of each model, and the version that it describes. `on_late` is called for late ones."""

    def __init__(self, describe: Describe, on_late: Callable[[], None]) -> None:
        self._describe = describe
        self._on_late = on_late
        self._descriptions: dict[str, tuple[Version, ModelDescription]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def of(self, name: str) -> ModelDescription | None:
        described = self._descriptions.get(name)
        return described[1] if described else None

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(names)
        self._descriptions = {name: described for name, described in self._descriptions.items() if name in kept}

    async def refresh(self, versions: Mapping[str, Version]) -> None:
        """Ask each of these models whose version isn't described yet, and wait a moment for the answers."""
        tasks = [self._ask(name, version) for name, version in versions.items() if self._is_due(name, version)]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in late:
            task.add_done_callback(lambda _: self._on_late())

    def _is_due(self, name: str, version: Version) -> bool:
        return name not in self._asking and (name not in self._descriptions or self._descriptions[name][0] != version)

    def _ask(self, name: str, version: Version) -> asyncio.Task[None]:
        task = self._asking[name] = asyncio.create_task(self._learn(name, version))
        return task

    async def _learn(self, name: str, version: Version) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self._descriptions[name] = version, await self._describe(name)
        except (ServeAppError, TimeoutError):
            pass  # asked again at the next refresh
        finally:
            del self._asking[name]
