"""Puts things together: config in, Ray Serve applications out. The import paths of `serve_config.yaml`.

No `from __future__ import annotations` here: Ray Serve reads the builders' annotations as classes.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args

import ray
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.config import RequestRouterConfig
from starlette.applications import Starlette

from serve_app import cluster
from serve_app.admission import Admission, num_places
from serve_app.api import lane
from serve_app.api.lane import Lane
from serve_app.budget import Ask, Budget, Grant, Ledger
from serve_app.cancel_board import CancelBoard, Wish
from serve_app.catalog import Catalog
from serve_app.config import IngressConfig, MetricsConfig, ModelConfig, RoutingConfig
from serve_app.engines import vllm_args, vllm_ranks
from serve_app.http_config import HttpConfig
from serve_app.images import ImageGate
from serve_app.ingress import create_app
from serve_app.keys import Key, Keyring
from serve_app.load_progress import LoadProgress
from serve_app.log import log_to_file
from serve_app.loop_watch import end_if_stuck
from serve_app.messages import (
    Chunk,
    EventEncoder,
    GenerationRequest,
    ModelDescription,
    ModelHandle,
    StreamTotal,
    TokenizedPrompt,
)
from serve_app.metrics.model_states import ModelStates
from serve_app.metrics.registry import Metrics
from serve_app.metrics.reporter import Reporter
from serve_app.metrics.sidecar import Sidecar, create_metrics_app
from serve_app.metrics.snapshot import Snapshot, Source, SourceRole, Waiting
from serve_app.playground.deployment import build_playground as build_playground
from serve_app.pressure import Elsewhere
from serve_app.replica import start_replica
from serve_app.request_router import AffinityRouter
from serve_app.router import Router
from serve_app.running import Running
from serve_app.serve_settings import within
from serve_app.side_stream import Address, Inbox, Outlets
from serve_app.sidecar_link import SidecarLink, heed_wishes
from serve_app.single_model import SingleModelCatalog
from serve_app.strict import first_sentence
from serve_app.watched_replica import LAST_WORDS_S, WatchedReplica, until_lost

logger = logging.getLogger("serve_app")

# A dead replica is noticed within a period, a hung one within the timeout; see docs/operations.md.
HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 10.0
_CANCEL_TIMEOUT_S = 3.0
_PROXY_INTERVAL_S = 0.05  # as Ray Serve LLM's own
_SIDECAR_CALLS = 10_000  # each process that serves HTTP keeps one open
_SIDECAR_DRAIN_S = 3.0  # those open calls would hold its end up for longer, and nobody depends on them
_NO_ACCESS_LOG = {"enable_access_log": False}  # each request has a line of ours


def build_model(config: ModelConfig) -> Application:
    """One model, on replicas of its own. The application's name is the model's name. Raises `ConfigError`."""
    if config.needs_vllm:
        vllm_ranks.check_ranks(config)
    if config.needs_vllm and vllm_args.is_installed():  # else only the replicas' nodes can tell
        vllm_args.check_engine_args(config)
    deployment = serve.deployment(
        serve.ingress()(ModelDeployment),
        name="Model",
        ray_actor_options=config.actor_options,
        placement_group_bundles=config.placement_bundles,
        placement_group_strategy=config.placement_strategy if config.placement_bundles else None,
        autoscaling_config=config.autoscaling_options,
        request_router_config=_request_router(config),
        max_ongoing_requests=config.ongoing_limit,
        max_queued_requests=config.queued_limit,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        max_constructor_retry_count=config.start_attempts,
        logging_config=_NO_ACCESS_LOG,
    )
    return deployment.bind(config)


def _request_router(config: ModelConfig) -> RequestRouterConfig:
    if config.balancing == "affinity" and not haproxy_is_on():
        return RequestRouterConfig(request_router_class=AffinityRouter)
    # Ray Serve's own: power of two choices. Beside HAProxy, Ray Serve lets no deployment that can be reached by HTTP
    # have a router of its own.
    return RequestRouterConfig()


def haproxy_is_on() -> bool:
    """Whether this cluster's HTTP goes through HAProxy, as told by Ray Serve's own variable."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def build_ingress(config: IngressConfig) -> Application:
    """The HTTP front of every model named in its `user_config`."""
    deployment = serve.deployment(
        serve.ingress()(IngressDeployment),
        name="Ingress",
        num_replicas=config.num_replicas,
        ray_actor_options={"num_cpus": config.num_cpus},
        max_ongoing_requests=config.max_ongoing_requests,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        user_config={},
        logging_config=_NO_ACCESS_LOG,
    )
    return deployment.bind(config)


def build_metrics(config: MetricsConfig) -> Application:
    """The metrics sidecar: one small actor that every other process reports to."""
    deployment = serve.deployment(
        serve.ingress()(MetricsDeployment),
        name="Metrics",
        num_replicas=1,
        ray_actor_options={"num_cpus": config.num_cpus},
        max_ongoing_requests=_SIDECAR_CALLS,
        graceful_shutdown_timeout_s=_SIDECAR_DRAIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )
    return deployment.bind(config)


class ModelDeployment:
    """A replica and its reporter, as Ray Serve runs them.

    Reached by the ingress with `answer` and `stream`, and where the application has a route prefix by HTTP too: its
    direct lane, the same HTTP app as the ingress's, for this model alone.
    """

    async def __init__(self, config: ModelConfig) -> None:  # type: ignore[misc] # Ray Serve awaits it
        _start_log()
        name = serve.get_replica_context().app_name
        registry = CollectorRegistry()
        metrics = Metrics(registry, models=[name, *config.adapters])
        progress = LoadProgress(name)
        self._elsewhere = Elsewhere()
        reporter = _start_reporter(registry, "model", config.metrics_application, progress, self._elsewhere.told)
        try:
            self._replica = await start_replica(name, config, metrics, progress)
        except BaseException:  # a cancelled start too: else its task outlives it
            await reporter.stop()
            raise
        self._name, self._config, self._metrics = name, config, metrics
        self._model = WatchedReplica(name, self._replica)
        self._lane_model = WatchedReplica(name, self._replica, LAST_WORDS_S)
        self._outlets = Outlets()
        self._running = Running()
        self._reporter = reporter
        self._watch = asyncio.create_task(end_if_stuck())

    # Both yield their one result: only of a generator does Ray Serve's router hear at once that a replica took the
    # request and how many it has, which is what it balances by.

    async def answer(self, request: GenerationRequest) -> AsyncIterator[tuple[Chunk, ...]]:
        """The whole answer."""
        yield await self._model.answer(request)

    async def stream(
        self, request: GenerationRequest, encoder: EventEncoder, address: Address
    ) -> AsyncIterator[StreamTotal]:
        """Sends the answer's events to the ingress's address; the work stops if they can't get there."""
        outlet = await self._outlets.open(address)
        yield await until_lost(self._model.stream(request, encoder, outlet.write), outlet.lost)

    async def tokenize(self, request: GenerationRequest) -> AsyncIterator[TokenizedPrompt]:
        """The prompt that the request would make."""
        yield await self._model.tokenize(request)

    def __serve_build_asgi_app__(self) -> Starlette:  # Ray Serve's name for it
        http, sidecar = self._config.http, SidecarLink(self._config.metrics_application)
        catalog = SingleModelCatalog(self._name, self._replica.describe())
        num_at_once = self._replica.describe().num_at_once or 1
        places = min(num_places(num_at_once, num_replicas=1), self._config.ongoing_limit)
        admission = Admission(http.admission, lambda _: places, lambda _: self._name, watcher=self._metrics)
        lane = _lane(http, sidecar, catalog, self._lane_model, self._metrics, admission, self._running)
        return create_app(lane)

    async def refuse_new(self) -> int:
        """Refuse the direct lane's requests from now on; how many still run."""
        return self._running.close()

    def describe(self) -> ModelDescription:
        return self._replica.describe()

    def record_autoscaling_stats(self) -> dict[str, float]:  # Ray Serve's name for it
        return self._replica.pressure() | self._elsewhere.pressure()

    async def check_health(self) -> None:
        await self._lane_model.check_health()

    async def __del__(self) -> None:
        if hasattr(self, "_reporter"):  # absent where the start failed
            self._watch.cancel()
            self._model.is_ending = self._lane_model.is_ending = True
            await self._replica.stop()
            await self._reporter.stop()


class IngressDeployment:
    """The HTTP app over the router. `user_config` names the models and changes without a restart."""

    def __init__(self, config: IngressConfig) -> None:
        _start_log()
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._config = config
        self._sidecar = sidecar = SidecarLink(config.metrics_application)
        self._catalog = Catalog(
            lambda model: self._router.describe(model), sidecar.loading, cluster.unplaced, cluster.declarations
        )
        self._registry.register(ModelStates(get_args(lane.State), self._catalog))
        self._inbox = Inbox(config.stream_host or ray.util.get_node_ip_address())
        self._router = Router(self._catalog, self._inbox)
        self._running = Running()
        self._admission = Admission(
            config.admission, self._capacity, self._catalog.application_of,
            watcher=self._metrics, not_ready=self._router.not_ready,
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve these models from now on.

        A `user_config` that is wrong leaves the one before in place: were it raised, Ray Serve would stop this
        replica and every model with it. A first one raises `ValueError`.
        """
        try:
            routing = RoutingConfig.model_validate(user_config)
        except ValidationError as exc:
            if not self._tasks:
                raise
            self._catalog.refused_config = first_sentence(exc)
            logger.error("user_config is refused, the one before stays: %s: correct it", self._catalog.refused_config)
            return
        self._catalog.refused_config = None
        self._catalog.configure(routing)
        self._metrics.models = frozenset(routing.models)
        await self._catalog.first_look()  # a new ingress knows most of its models before its first request
        await self._inbox.start()  # here, so that a wrong `stream_host` fails the deploy
        if not self._tasks:
            self._reporter = _start_reporter(self._registry, "ingress", self._config.metrics_application)
            work = (self._catalog.keep_fresh(lambda: self._admission.is_pressed), end_if_stuck())
            self._tasks += [asyncio.create_task(one) for one in work]

    def __serve_build_asgi_app__(self) -> Starlette:  # Ray Serve's name for it
        parts = (self._catalog, self._router, self._metrics, self._admission, self._running)
        return create_app(_lane(self._config, self._sidecar, *parts))

    async def refuse_new(self) -> int:
        """Refuse requests from now on; how many still run."""
        return self._running.close()

    def _capacity(self, application: str) -> int:
        """This ingress's part of what the application's replicas take: proxies give each as much to do."""
        return math.ceil(self._catalog.capacity(application) / self._config.num_replicas)

    async def __del__(self) -> None:
        if hasattr(self, "_reporter"):  # absent where the start failed
            for task in self._tasks:
                task.cancel()
            await self._reporter.stop()  # what ended well since the last push would count as dead with this process


def _lane(
    config: HttpConfig,
    sidecar: SidecarLink,
    catalog: lane.Catalog,
    handle: ModelHandle,
    metrics: Metrics,
    admission: Admission,
    running: Running,
) -> Lane:
    if config.write_interval_s is None:
        config = config.model_copy(update={"write_interval_s": 0.0 if haproxy_is_on() else _PROXY_INTERVAL_S})
    serve_timeout_s = cluster.serve_timeout_s()
    if serve_timeout_s is not None and within(serve_timeout_s) < config.request_timeout_s:
        config = config.model_copy(update={"request_timeout_s": within(serve_timeout_s)})
    keys = Keyring(config.keys)
    if keys.is_open:
        logger.warning("no API keys: whoever reaches this service may use it; docs/security.md says how to close it")
    process = serve.get_replica_context().replica_id.unique_id
    has_sidecar = sidecar.application is not None

    async def cancel_elsewhere(request_id: str, key: Key | None) -> bool:
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                return has_sidecar and await sidecar.cancel(request_id, key, process)
        except Exception:  # noqa: BLE001 -- without the sidecar, in whatever way it is absent, nobody else hears of it
            return False

    async def heed_others() -> None:
        if has_sidecar:
            await heed_wishes(sidecar, process, running)

    return Lane(
        config=config,
        catalog=catalog,
        handle=handle,
        images=ImageGate(config.images),
        metrics=metrics,
        keys=keys,
        budget=Budget(sidecar.lease if has_sidecar else None),
        admission=admission,
        running=running,
        cancel_elsewhere=cancel_elsewhere,
        heed_others=heed_others,
    )


class MetricsDeployment:
    """The sidecar: `record` takes snapshots from the other processes, HTTP gives them out.

    Beside the numbers it keeps what those processes must agree on: the limits of keys, and which requests are to be
    called off.
    """

    async def __init__(self, config: MetricsConfig) -> None:  # type: ignore[misc] # Ray Serve awaits it
        _start_log()
        self._sidecar = Sidecar(config)
        self._watch = asyncio.create_task(self._sidecar.watch())
        self._keys = Keyring(config.keys)
        self._allowed_hosts = config.allowed_hosts
        self._ledger = Ledger()
        self._cancel_board = CancelBoard()

    async def record(self, snapshot: Snapshot) -> Waiting:  # on the loop, where the sidecar lives
        self._sidecar.record(snapshot)
        source = snapshot.source
        return self._sidecar.waiting(source.application) if source.role == "model" else Waiting()

    async def loading(self) -> dict[str, str]:
        return self._sidecar.loading()

    async def lease(self, ask: Ask) -> Grant:
        return self._ledger.grant(ask)

    async def listen(self, process: str, found: dict[int, bool]) -> list[Wish]:
        return await self._cancel_board.listen(process, found)

    async def cancel(self, request_id: str, key: Key | None, asker: str) -> bool:
        return await self._cancel_board.cancel(request_id, key, asker)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_metrics_app(self._sidecar, self._keys, self._allowed_hosts)


def _start_log() -> None:
    context = serve.get_replica_context()
    log_to_file(Path(get_serve_logs_dir()), context.app_name, context.replica_id.unique_id)


def _start_reporter(
    registry: CollectorRegistry,
    role: SourceRole,
    application: str | None,
    progress: LoadProgress | None = None,
    hear: Callable[[Waiting], None] = lambda _: None,
) -> Reporter:
    """Report this replica's numbers to the sidecar from now on; `application` None reports to nobody.

    `hear` takes what the sidecar answers.
    """
    context = serve.get_replica_context()
    replica = context.replica_id.unique_id
    source = Source(role, context.app_name, replica, process=replica, started_at=time.time())
    loading = (lambda: progress.step) if progress else (lambda: None)
    link = SidecarLink(application)

    async def send(snapshot: Snapshot) -> None:
        hear(await link.record(snapshot))

    reporter = Reporter(registry, source, send, loading=loading)
    if application is not None:
        reporter.start()
    return reporter
