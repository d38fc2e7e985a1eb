"""Which models there are and how they are: Ray Serve's application states and the replicas' descriptions.

Refreshed in the background, so that choosing a model for a request costs a look in a dict.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from ray.serve.schema import ApplicationStatusOverview

from serve_app import cluster
from serve_app.api.lane import READY_STATES, ModelEntry, State, first_able
from serve_app.cluster import Declaration
from serve_app.config import RoutingConfig
from serve_app.errors import ModelNotReady, ServeAppError, UnknownModel, UnsupportedTask
from serve_app.messages import ModelDescription, Task
from serve_app.serve_states import STARTING, model_state, num_serving, replica_counts
from serve_app.strict import nearest_hint

logger = logging.getLogger("serve_app")

REFRESH_PERIOD_S = 1.0  # while something changes
RESTING_PERIOD_S = 4.0  # while all is ready: asking takes Ray Serve's controller and this process some 40 ms each
REST_AFTER_S = 15.0
LEAST_PERIOD_S = 0.2  # however much is in doubt
RETRY_AFTER_S = 5.0  # a model that loads is worth asking again this soon

LOADING_TIMEOUT_S = 1.0
CLUSTER_TIMEOUT_S = 10.0

Describe = Callable[[str], Awaitable[ModelDescription]]
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
        self._describe = describe
        self._loading = loading
        self._unplaced = unplaced
        self._ask_declarations = declarations
        self._declarations: dict[str, Declaration] = {}
        self._declared_at: dict[str, float] = {}
        self._entries: dict[str, ModelEntry] = {}
        self._aliases: dict[str, dict[str, float]] = {}
        self._described_at: dict[str, tuple[float, bool]] = {}
        self._has_served: set[str] = set()
        self.refused_config: str | None = None
        self._doubted = asyncio.Event()

    def configure(self, routing: RoutingConfig) -> None:
        """Serve these models from now on, in this order, and under these aliases."""
        models = routing.models
        self._doubted.set()
        self._aliases = dict(routing.aliases)
        waiting: State = "pending"
        self._entries = {m: self._entries.get(m) or ModelEntry(m, waiting, "not looked up yet") for m in models}

    def entries(self) -> list[ModelEntry]:
        return [*self._entries.values(), *(self._alias_entry(alias) for alias in self._aliases)]

    def find(self, name: str) -> ModelEntry:
        if name in self._aliases:
            return self._alias_entry(name)
        if name not in self._entries:
            known = [*self._entries, *self._aliases]
            raise UnknownModel(f"model '{name}' doesn't exist{nearest_hint(name, known)}", "model")
        return self._entries[name]

    def choose(self, name: str | None, task: Task, *, with_pictures: bool = False) -> ModelEntry:
        if name in self._aliases:
            name = self._drawn(name, task)
        entry = self.find(name) if name is not None else self._default(task, with_pictures)
        if not entry.may_serve(task):
            able = [e.name for e in self._entries.values() if e.may_serve(task)]
            raise UnsupportedTask(f"model '{entry.name}' doesn't do {task}{nearest_hint('', able)}", "model")
        if not self._can_serve(entry):
            how = "failed to start" if entry.state == "failed" else f"is {entry.state}"
            told = (entry.reason or "").removeprefix(f"model '{entry.name}': ")
            reason = f": {told}" if told else ""
            retry_after_s = None if entry.state == "failed" else RETRY_AFTER_S
            raise ModelNotReady(f"model '{entry.name}' {how}{reason}", "model", retry_after_s)
        return entry

    def _drawn(self, alias: str, task: Task) -> str:
        """One of the alias's models by weight, among those that are ready for the task, or will be in a moment.

        A version that doesn't start gets no requests, so that a failed canary is nobody's loss but its own.
        """
        weights = {name: weight for name, weight in self._aliases[alias].items() if weight}
        entries = (self._entries[name] for name in weights)
        able = [entry for entry in entries if self._can_serve(entry) and entry.may_serve(task)]
        best = [entry.name for entry in able if entry.is_ready] or [entry.name for entry in able] or list(weights)
        return random.choices(best, [weights[name] for name in best])[0]

    def _can_serve(self, entry: ModelEntry) -> bool:
        """Now, or in a moment: one that has served is being replaced, and Ray Serve holds its requests."""
        return entry.is_ready or (entry.name in self._has_served and entry.state != "failed")

    def _alias_entry(self, alias: str) -> ModelEntry:
        """As ready as the readiest of its models that has a weight."""
        weights = self._aliases[alias]
        models = [self._entries[name] for name, weight in weights.items() if weight]
        best = next((entry for entry in models if entry.is_ready), models[0])
        return replace(best, name=alias, base=None, weights=weights)

    async def keep_fresh(self) -> None:
        """Refresh for ever, less often while nothing changes."""
        changed_at = time.monotonic()
        while True:
            is_resting = time.monotonic() > changed_at + REST_AFTER_S
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
        """Something went wrong that the states don't tell: look at them now."""
        self._doubted.set()

    def _states(self) -> dict[str, tuple[State, int]]:
        return {name: (entry.state, entry.num_replicas) for name, entry in self._entries.items()}

    async def try_refresh(self) -> None:
        """Refresh once; a Serve controller that doesn't answer leaves the last known states."""
        try:
            await self.refresh()
        except Exception:  # noqa: BLE001 -- whatever the controller's death raises, serving goes on
            logger.warning("the models' states could not be refreshed; keeping the last known ones")

    async def refresh(self) -> None:
        """Ask Ray Serve for every application's state once, and each model that became ready for its description."""
        applications = await asyncio.to_thread(cluster.overviews)
        steps: dict[str, str] | None = None
        unplaced = await self._waiting_for_room(applications)
        await self._refresh_declarations(applications)
        for name in list(self._entries):
            application = applications.get(name)
            entry = _with_state(self._entries[name], application)
            if name in self._declarations:
                declared = self._declarations[name]
                entry = replace(entry, declared_tasks=declared.tasks, declared_family=declared.family)
            if name in unplaced:
                entry = _without_room(entry, unplaced[name])
            if entry.state == "loading" and entry.reason == STARTING:
                steps = await self._steps() if steps is None else steps
                entry = replace(entry, reason=steps.get(name, STARTING))
            if application is None:
                self._has_served.discard(name)
            elif application.status.value in ("RUNNING", "UNHEALTHY"):
                self._has_served.add(name)
            if application is not None and entry.state == "ready":
                entry = await self._described(entry, application)
            if name in self._entries:
                self._entries[name] = entry
        for name in set(self._entries) - set(applications):
            self._entries[name] = self._adapter_entry(name) or self._entries[name]

    async def _refresh_declarations(self, applications: Applications) -> None:
        """Asked again after each deploy, as long as there are models that no replica has described."""
        deployed_at = {name: application.last_deployed_time_s for name, application in applications.items()}
        if deployed_at == self._declared_at or all(entry.description for entry in self._entries.values()):
            return
        try:
            async with asyncio.timeout(CLUSTER_TIMEOUT_S):
                self._declarations = await asyncio.to_thread(self._ask_declarations)
        except Exception:  # noqa: BLE001 -- whatever keeps Ray Serve from telling, replicas tell when they are up
            return
        self._declared_at = deployed_at

    async def _waiting_for_room(self, applications: Applications) -> dict[str, str]:
        """Why replicas wait to be placed, asked only while some replica of these models starts."""
        known = (applications.get(name) for name in self._entries)
        if not any(application and replica_counts(application).get("STARTING") for application in known):
            return {}
        try:
            async with asyncio.timeout(CLUSTER_TIMEOUT_S):
                return await asyncio.to_thread(self._unplaced)
        except Exception:  # noqa: BLE001 -- whatever keeps the cluster from telling, the states are told without
            return {}

    async def _steps(self) -> dict[str, str]:
        """What each replica that starts is doing, as far as the sidecar knows."""
        try:
            async with asyncio.timeout(LOADING_TIMEOUT_S):
                return await self._loading()
        except Exception:  # noqa: BLE001 -- without the sidecar, in whatever way it is absent, there is no detail
            return {}

    def application_of(self, name: str) -> str:
        """The Serve application that serves the model of this name: its own, or for an adapter its base's."""
        base = self._base_of(name)
        return base.name if base else name

    def capacity(self, name: str) -> int | None:
        """How many requests the application takes at once; None until a replica has told."""
        entry = self._entries.get(name)
        return entry.description.ongoing_limit if entry and entry.description else None

    def why_not_running(self, name: str) -> str | None:
        """Why the model has no replica that could answer now; None where it has one, or nobody knows."""
        entry = self._entries.get(name)
        if entry is None or entry.state == "ready":
            return None
        return entry.reason or "its replica is about to start"

    def _base_of(self, adapter: str) -> ModelEntry | None:
        """As replicas tell; of a model that was never awake, as its args say."""
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

    async def _described(self, entry: ModelEntry, application: ApplicationStatusOverview) -> ModelEntry:
        """Asked once while an update may still have replicas of the version before, and once after it."""
        deployed_at, is_settled = application.last_deployed_time_s, application.status.value == "RUNNING"
        if entry.description is not None and self._described_at.get(entry.name) == (deployed_at, is_settled):
            return entry
        try:
            async with asyncio.timeout(5):
                description = await self._describe(entry.name)
        except (ServeAppError, TimeoutError):
            return entry
        self._described_at[entry.name] = (deployed_at, is_settled)
        return replace(entry, description=description, created_s=int(deployed_at))

    def _default(self, task: Task, with_pictures: bool) -> ModelEntry:
        first = first_able(self._entries.values(), task, with_pictures)
        if first is None:
            raise UnknownModel(f"no model here does {task}: name one in the ingress's user_config", "model")
        return first


def _with_state(entry: ModelEntry, application: ApplicationStatusOverview | None) -> ModelEntry:
    if application is None:
        absent = (
            f"no Serve application is named '{entry.name}', and no model has an adapter of that name: "
            "deploy it or take it out of the ingress's models"
        )
        return replace(entry, state="pending", reason=absent, num_replicas=0)
    if not application.deployments and application.status.value == "DEPLOYING" and entry.is_ready:
        return entry  # while Ray Serve reads the new args, the version before serves, and isn't counted
    state, reason = model_state(application)
    own = f"model '{entry.name}': "
    if state == "failed" and reason and not reason.startswith(own):  # Ray Serve's builder knows no model's name
        reason = own + reason
    return replace(entry, state=state, reason=reason, num_replicas=num_serving(application))


def _without_room(entry: ModelEntry, why: str) -> ModelEntry:
    """A model that waits for a node; one that serves already only lacks a further replica."""
    if entry.state == "ready":
        return replace(entry, reason=entry.reason or f"a further replica waits for room: it {why}")
    if entry.state in ("loading", "pending", "unhealthy"):
        return replace(entry, state="pending", reason=f"model '{entry.name}': {why}")
    return entry
