"""The HTTP app over the router, as Ray Serve runs it."""

import asyncio
import logging
import math
from typing import Any, get_args

import ray
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.applications import Starlette

from serve_app.access.admission import Admission
from serve_app.access.running import Running
from serve_app.config.applications import IngressConfig, RoutingConfig
from serve_app.deployments.lane import build_lane, start_log, start_reporter
from serve_app.deployments.loop_watch import end_if_stuck
from serve_app.deployments.sidecar_link import SidecarLink
from serve_app.exchange.lane import Lane
from serve_app.ingress.app import create_app
from serve_app.metrics.model_states import ModelStates
from serve_app.metrics.registry import Metrics
from serve_app.models.catalog import Catalog
from serve_app.models.entry import State
from serve_app.models.lane_table import lane_table
from serve_app.placement import cluster
from serve_app.routing.router import Router
from serve_app.routing.side_stream import Inbox
from serve_app.strict import first_sentence

logger = logging.getLogger("serve_app")


class IngressDeployment:
    """`user_config` names the models and changes without a restart."""

    def __init__(self, config: IngressConfig) -> None:
        start_log()
        registry = CollectorRegistry()
        self._metrics = Metrics(registry)
        self._config = config
        self._sidecar = sidecar = SidecarLink(config.metrics_application)
        self._catalog = Catalog(
            lambda model: self._router.describe(model), sidecar.loading, cluster.unplaced, cluster.declarations
        )
        registry.register(ModelStates(get_args(State), self._catalog))
        self._inbox = Inbox(config.stream_host or ray.util.get_node_ip_address())
        self._router = Router(self._catalog, self._inbox)
        self._running = Running()
        self._admission = Admission(
            config.admission, self._capacity, self._catalog.application_of,
            watcher=self._metrics, not_ready=self._router.not_ready,
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []
        self._last_table = ""

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
            self._reporter = start_reporter(self._metrics, "ingress", self._config.metrics_application)
            work = (self._catalog.keep_fresh(lambda: self._admission.is_pressed), end_if_stuck())
            self._tasks += [asyncio.create_task(duty) for duty in work]

    def __serve_build_asgi_app__(self) -> Starlette:  # Ray Serve's name for it
        parts = (self._catalog, self._router, self._metrics, self._admission, self._running)
        lane = build_lane(self._config, self._sidecar, *parts, lambda: self._lane_table(lane))
        return create_app(lane)

    def _lane_table(self, lane: Lane) -> str:
        """What HAProxy may send past this ingress. A default depends on the key, where there are keys."""
        stand_ins = self._config.default_model_names if lane.keys.is_open else ()
        table = lane_table(self._catalog.entries(), self._catalog.can_serve, stand_ins, self._config.fingerprint)
        if table != self._last_table:
            names = sorted({line.split("\t")[1] for line in table.splitlines()})
            logger.info("HAProxy sends requests straight to lanes by these names: %s", ", ".join(names) or "none")
            self._last_table = table
        return table

    async def refuse_new(self) -> int:
        """Refuse requests from now on. Returns how many still run."""
        return self._running.close()

    def _capacity(self, application: str) -> int:
        """This ingress's share of what the application's replicas take, because proxies spread requests evenly."""
        return math.ceil(self._catalog.capacity(application) / self._config.num_replicas)

    async def __del__(self) -> None:
        if hasattr(self, "_reporter"):  # absent where the start failed
            for task in self._tasks:
                task.cancel()
            await (
                self._reporter.stop()
            )  # else requests that ended since the last push would count as lost with this process
