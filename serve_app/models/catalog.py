"""The models and their states, from Ray Serve's application states and the replicas' descriptions.

Refreshed in the background, so that choosing a model for a request costs a look in a dict.
"""

import asyncio
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from ray.serve.schema import ApplicationStatusOverview

from serve_app.config.applications import RoutingConfig
from serve_app.errors import ModelNotReady, UnknownModel, UnsupportedTask
from serve_app.messages import Task
from serve_app.models.descriptions import Describe, Descriptions, Version
from serve_app.models.entry import READY_STATES, ModelEntry, State, first_able, num_places
from serve_app.models.serve_states import STARTING, num_serving, replica_counts, with_state, without_room
from serve_app.placement import cluster
from serve_app.placement.cluster import Declaration
from serve_app.strict import nearest_hint

logger = logging.getLogger("serve_app")

REFRESH_PERIOD_S = 1.0  # while something changes
RESTING_PERIOD_S = 4.0  # while all is ready: a look takes Ray Serve's controller and this process some 40 ms each
REST_AFTER_S = 15.0
LEAST_PERIOD_S = 0.2  # however much is in doubt
RETRY_AFTER_S = 5.0  # a model that loads is worth asking again this soon

FIRST_LOOK_S = 5.0  # the longest that a new ingress waits to learn about its models
_UNSEEN = "not looked up yet"
DETAILS_TIMEOUT_S = 5.0  # for the sources of details, which are asked at the same time
_UNDESCRIBED_AT_ONCE = 16  # requests at once that a replica is assumed to run until it describes itself

T = TypeVar("T")
Loading = Callable[[], Awaitable[dict[str, str]]]
Unplaced = Callable[[], dict[str, str]]
Declarations = Callable[[], dict[str, Declaration]]
Applications = dict[str, ApplicationStatusOverview]


class Catalog:
    """The ingress's models, by the names in its `user_config`.

    `describe` asks a model's replica about itself; `loading` tells what the replicas that start are doing. Two may
    block: `unplaced` tells why some wait for room on a node, `declarations` what models' args say of them. All but
    the first may fail.
    """

    def __init__(
        self, describe: Describe, loading: Loading, unplaced: Unplaced = dict, declarations: Declarations = dict
    ) -> None:
        self._descriptions = Descriptions(describe, self.doubt)
        self._loading = loading
        self._unplaced = unplaced
        self._ask_declarations = declarations
        self._declarations: dict[str, Declaration] = {}
        self._declared_at: dict[str, float] = {}
        self._entries: dict[str, ModelEntry] = {}
        self._aliases: dict[str, dict[str, float]] = {}
        self._has_served: set[str] = set()
        self._watchers: list[Callable[[], None]] = []
        self.refused_config: str | None = None
        self._doubted = asyncio.Event()

    def watch(self, refreshed: Callable[[], None]) -> None:
        """Call this after each refresh of the states."""
        self._watchers.append(refreshed)

    def configure(self, routing: RoutingConfig) -> None:
        """Serve these models from now on, in this order, and under these aliases."""
        models = routing.models
        self._doubted.set()
        self._aliases = dict(routing.aliases)
        self._descriptions.keep_only(models)
        waiting: State = "pending"
        self._entries = {m: self._entries.get(m) or ModelEntry(m, waiting, _UNSEEN) for m in models}

    def models(self) -> list[ModelEntry]:
        """Without the aliases."""
        return list(self._entries.values())

    def entries(self) -> list[ModelEntry]:
        return [*self._entries.values(), *(self._alias_entry(alias) for alias in self._aliases)]

    def find(self, name: str) -> ModelEntry:
        if name in self._aliases:
            return self._alias_entry(name)
        if name not in self._entries:
            names = [*self._entries, *self._aliases]
            raise UnknownModel(f"model '{name}' doesn't exist{nearest_hint(name, names)}", "model")
        return self._entries[name]

    def choose(self, name: str | None, task: Task, *, with_images: bool = False) -> ModelEntry:
        if name in self._aliases:
            name = self._drawn(name, task)
        entry = self.find(name) if name is not None else self._default(task, with_images)
        if not entry.may_serve(task):
            able = [e.name for e in self._entries.values() if e.may_serve(task)]
            wrong = f"model '{entry.name}' doesn't do {task}{nearest_hint('', able)}"
            raise UnsupportedTask(wrong, "model").about(entry.name)
        if refusal := self.refusal_of(entry.name):
            raise refusal
        return entry

    def refusal_of(self, name: str) -> ModelNotReady | None:
        """The error for requests for this model; None if they may be sent, or if the model is unknown."""
        entry = self._entries.get(name)
        if entry is None or self.can_serve(entry):
            return None
        how = "failed to start" if entry.state == "failed" else f"is {entry.state}"
        why = (entry.reason or "").removeprefix(f"model '{entry.name}': ")
        retry_after_s = None if entry.state == "failed" else RETRY_AFTER_S
        return ModelNotReady.because(f"model '{entry.name}' {how}", why, retry_after_s).about(entry.name)

    def _drawn(self, alias: str, task: Task) -> str:
        """One of the alias's models by weight, among those that are ready for the task, or will be in a moment.

        A version that doesn't start gets no requests, so that a failed canary is nobody's loss but its own.
        """
        weights = {name: weight for name, weight in self._aliases[alias].items() if weight}
        entries = (self._entries[name] for name in weights)
        able = [entry for entry in entries if self.can_serve(entry) and entry.may_serve(task)]
        best = [entry.name for entry in able if entry.is_ready] or [entry.name for entry in able] or list(weights)
        return random.choices(best, [weights[name] for name in best])[0]

    def may_answer_for(self, name: str, model: str) -> bool:
        return self._aliases.get(name, {}).get(model, 0) > 0

    def can_serve(self, entry: ModelEntry) -> bool:
        """Now or soon: a model that has served is being replaced, and Ray Serve holds its requests."""
        return entry.is_ready or (self.has_served(entry) and entry.state != "failed")

    def has_served(self, entry: ModelEntry) -> bool:
        """By what Ray Serve has reported while this process ran."""
        return entry.name in self._has_served

    def _alias_entry(self, alias: str) -> ModelEntry:
        """An alias is as ready as the readiest of its models with a weight."""
        weights = self._aliases[alias]
        models = [self._entries[name] for name, weight in weights.items() if weight]
        best = next((entry for entry in models if entry.is_ready), models[0])
        return replace(best, name=alias, base=None, weights=weights)

    async def keep_fresh(self, is_pressed: Callable[[], bool] = lambda: False) -> None:
        """Refresh forever, less often while nothing changes.

        Not less often while requests wait (`is_pressed`): they go to new replicas as soon as those are seen.
        """
        changed_at = time.monotonic()
        while True:
            is_resting = time.monotonic() > changed_at + REST_AFTER_S and not is_pressed()
            with suppress(TimeoutError):
                async with asyncio.timeout(RESTING_PERIOD_S if is_resting else REFRESH_PERIOD_S):
                    await self._doubted.wait()
            await asyncio.sleep(LEAST_PERIOD_S)
            self._doubted.clear()
            before = self._states()
            await self.try_refresh()
            states = self._states()
            if states != before or any(state not in READY_STATES for state, _ in states.values()):
                changed_at = time.monotonic()

    def doubt(self) -> None:
        """Refresh now, because something went wrong that the states don't show."""
        self._doubted.set()

    def _states(self) -> dict[str, tuple[State, int]]:
        return {name: (entry.state, entry.num_replicas) for name, entry in self._entries.items()}

    async def try_refresh(self) -> None:
        """Refresh once. If Serve's controller doesn't answer, the last states stay."""
        try:
            await self.refresh()
        except Exception:  # noqa: BLE001 -- whatever the controller's death raises, serving goes on
            logger.warning("the models' states could not be refreshed; keeping the last known ones")

    async def first_look(self) -> None:
        """Refresh once, for a bounded time; the rest is learned while this process serves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self.try_refresh()

    async def refresh(self) -> None:
        """Ask Ray Serve for the states of all applications, and each newly ready model for its description.

        Whoever else may know more is asked at the same time, and nobody's silence keeps what the others tell.
        """
        applications = await asyncio.to_thread(cluster.overviews)
        if not applications:  # this process's own is one, so Ray Serve's controller doesn't know them yet
            return
        seen = {name: with_state(entry, applications.get(name)) for name, entry in self._entries.items()}
        # Ready models, and those never seen before, are settled now, however long the details of others take.
        settled = {name: entry for name, entry in seen.items() if entry.is_ready or self._is_unseen(name)}
        self._settle(settled, applications)
        is_loading = any(entry.state == "loading" and entry.reason == STARTING for entry in seen.values())
        unplaced, steps, _ = await asyncio.gather(
            self._waiting_for_room(applications),
            self._steps() if is_loading else _nothing(),
            self._refresh_declarations(applications),
        )
        detailed = {name: self._detailed(entry, unplaced.get(name), steps.get(name)) for name, entry in seen.items()}
        self._settle(detailed, applications)
        await self._descriptions.refresh(self._versions(applications))
        self._settle(self._entries, applications)
        for refreshed in self._watchers:
            refreshed()

    def _is_unseen(self, name: str) -> bool:
        return self._entries[name].reason == _UNSEEN

    def _detailed(self, entry: ModelEntry, no_room: str | None, step: str | None) -> ModelEntry:
        if declared := self._declarations.get(entry.name):
            entry = replace(entry, declared_tasks=declared.tasks, declared_family=declared.family)
        if no_room:
            entry = without_room(entry, no_room)
        if step and entry.state == "loading" and entry.reason == STARTING:
            entry = replace(entry, reason=step)
        return entry

    def _settle(self, seen: Mapping[str, ModelEntry], applications: Applications) -> None:
        """Set these entries in one step, so that an adapter is never without its base."""
        versions = self._versions(applications)
        for name in set(self._entries) & set(seen):
            application = applications.get(name)
            if application is None:
                self._has_served.discard(name)
            elif num_serving(application) or application.status.value in ("RUNNING", "UNHEALTHY"):
                self._has_served.add(name)
            self._entries[name] = seen[name]
            if description := self._descriptions.of(name):
                created_s = int(versions[name][0]) if name in versions else seen[name].created_s
                self._entries[name] = replace(seen[name], description=description, created_s=created_s)
        for name in set(self._entries) - set(applications):
            self._entries[name] = self._adapter_entry(name) or self._entries[name]

    def _versions(self, applications: Applications) -> dict[str, Version]:
        """The versions that ready models run. A model is described once during an update and once after it."""
        return {
            name: (applications[name].last_deployed_time_s, applications[name].status.value == "RUNNING")
            for name, entry in self._entries.items()
            if entry.state == "ready" and name in applications
        }

    async def _refresh_declarations(self, applications: Applications) -> None:
        """Read again after each deploy, while some model has no description from a replica."""
        deployed_at = {name: application.last_deployed_time_s for name, application in applications.items()}
        if deployed_at == self._declared_at or all(entry.description for entry in self._entries.values()):
            return
        declarations = await _within_time(asyncio.to_thread(self._ask_declarations))
        if declarations is not None:
            self._declarations, self._declared_at = declarations, deployed_at

    async def _waiting_for_room(self, applications: Applications) -> dict[str, str]:
        """Why replicas wait to be placed. Asked only while a replica of these models starts."""
        own = (applications.get(name) for name in self._entries)
        if not any(application and replica_counts(application).get("STARTING") for application in own):
            return {}
        return await _within_time(asyncio.to_thread(self._unplaced)) or {}

    async def _steps(self) -> dict[str, str]:
        """What each starting replica is doing, by the sidecar's last report."""
        return await _within_time(self._loading()) or {}

    def application_of(self, name: str) -> str:
        """The Serve application that serves the model of this name: its own, or for an adapter its base's."""
        base = self._base_of(name)
        return base.name if base else name

    def capacity(self, name: str) -> int:
        """How many requests the application takes at once with the replicas that it has now.

        All of them where it has failed: so none waits for its turn to be told.
        """
        entry = self._entries.get(name)
        if self.refusal_of(name):
            return sys.maxsize
        if entry is None:
            return num_places(_UNDESCRIBED_AT_ONCE, 0)
        num_at_once = entry.description.num_at_once if entry.description else None
        return num_places(num_at_once or _UNDESCRIBED_AT_ONCE, entry.num_replicas)

    def why_not_running(self, name: str) -> str | None:
        """Why no replica of the model can answer now; None if one can, or if the reason is unknown."""
        entry = self._entries.get(name)
        if entry is None or entry.state == "ready":
            return None
        return entry.reason or "its replica is about to start"

    def _base_of(self, adapter: str) -> ModelEntry | None:
        """By the replicas' descriptions, or by the args of a model that was never awake."""
        for entry in self._entries.values():
            if entry.name != adapter and adapter in self._adapters_of(entry):
                return entry
        return None

    def _adapters_of(self, entry: ModelEntry) -> tuple[str, ...]:
        if entry.description is not None:
            return entry.description.adapters
        declared = self._declarations.get(entry.name)
        return declared.adapters if declared else ()

    def _adapter_entry(self, name: str) -> ModelEntry | None:
        """An adapter is as ready as its base, and can do what its base can."""
        base = self._base_of(name)
        if base is None:
            return None
        if base.name in self._has_served:
            self._has_served.add(name)
        description = replace(base.description, adapters=()) if base.description else None
        return replace(base, name=name, description=description, base=base.name)

    def _default(self, task: Task, with_images: bool) -> ModelEntry:
        first = first_able(self._entries.values(), task, with_images)
        if first is None:
            raise UnknownModel(f"no model here does {task}: name one in the ingress's user_config", "model")
        return first


async def _nothing() -> dict[str, str]:
    return {}


async def _within_time(details: Awaitable[T]) -> T | None:
    """The details; None where the cluster or the sidecar gives none in time: the states do without."""
    try:
        async with asyncio.timeout(DETAILS_TIMEOUT_S):
            return await details
    except Exception:  # noqa: BLE001 -- Ray, its state API and the sidecar each fail in their own ways
        return None
