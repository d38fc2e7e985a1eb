"""A model's replica with its reporter and its direct lane, as Ray Serve runs them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import CollectorRegistry
from ray import serve
from starlette.applications import Starlette

from serve_app.access.admission import Admission
from serve_app.access.running import Running
from serve_app.checkpoints.load_progress import LoadProgress
from serve_app.config.applications import ModelConfig
from serve_app.deployments.lane import build_lane, start_log, start_reporter
from serve_app.deployments.loop_watch import end_if_stuck
from serve_app.deployments.sidecar_link import SidecarLink
from serve_app.ingress.app import create_app
from serve_app.messages import Chunk, EventEncoder, GenerationRequest, ModelDescription, StreamTotal, TokenizedPrompt
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import num_places
from serve_app.models.single_model import SingleModelCatalog
from serve_app.replica.pressure import Elsewhere
from serve_app.replica.replica import start_replica
from serve_app.replica.watched import LAST_WORDS_S, WatchedReplica, until_lost
from serve_app.routing.side_stream import Address, Outlets

logger = logging.getLogger("serve_app")


class ModelDeployment:
    """A replica and its reporter, as Ray Serve runs them.

    Reached by the ingress with `answer` and `stream`, and where the application has a route prefix by HTTP too: its
    direct lane, the same HTTP app as the ingress's, for this model alone.
    """

    async def __init__(self, config: ModelConfig) -> None:  # type: ignore[misc] # Ray Serve awaits it
        start_log()
        name = serve.get_replica_context().app_name
        metrics = Metrics(CollectorRegistry(), models=[name, *config.adapters])
        progress = LoadProgress(name)
        self._elsewhere = Elsewhere()
        reporter = start_reporter(metrics, "model", config.metrics_application, progress, self._elsewhere.report)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(reporter.stop)  # else its task outlives a start that fails or is cancelled
            self._replica = await start_replica(name, config, metrics, progress)
            undo.pop_all()
        self._name, self._config, self._metrics = name, config, metrics
        self._model = WatchedReplica(name, self._replica)
        self._lane_model = WatchedReplica(name, self._replica, LAST_WORDS_S)
        self._outlets = Outlets()
        self._running = Running()
        self._reporter = reporter
        self._watch = asyncio.create_task(end_if_stuck())

    def reconfigure(self, user_config: Any) -> None:
        """A model has no `user_config`, and one that is deployed nevertheless changes nothing.

        Without this method, or were it to raise, Ray Serve would stop the running replica and could start no other.
        """
        if user_config is not None:
            logger.error("a model has no user_config, and it is ignored: take it out, and set args")

    # These yield their one result. Ray Serve's router learns only from a generator at once that a replica took the
    # request and how many it has, which it balances by.

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
        lane = build_lane(http, sidecar, catalog, self._lane_model, self._metrics, admission, self._running)
        return create_app(lane)

    async def refuse_new(self) -> int:
        """Refuse the direct lane's requests from now on. Returns how many still run."""
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
