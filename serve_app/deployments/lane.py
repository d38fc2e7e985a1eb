"""Assembles a lane, and starts the log and the reporter that each of our processes has."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir

from serve_app.access.admission import Admission
from serve_app.access.budget import Budget
from serve_app.access.keys import Key, Keyring
from serve_app.access.running import Running
from serve_app.checkpoints.load_progress import LoadProgress
from serve_app.config.http import HttpConfig
from serve_app.config.serve_settings import within
from serve_app.deployments.sidecar_link import SidecarLink, heed_wishes
from serve_app.errors import Unanswered
from serve_app.exchange.lane import Lane
from serve_app.exchange.lane_secret import SECRET_VARIABLE, lane_secret
from serve_app.images.gate import ImageGate
from serve_app.log import log_to_file
from serve_app.messages import ModelHandle
from serve_app.metrics.registry import Metrics
from serve_app.metrics.reporter import Reporter
from serve_app.metrics.snapshot import Snapshot, Source, SourceRole, Waiting
from serve_app.models.entry import Catalog
from serve_app.placement import cluster

logger = logging.getLogger("serve_app")

_PROXY_INTERVAL_S = 0.05  # as Ray Serve LLM's own


def haproxy_is_on() -> bool:
    """Whether this cluster's HTTP goes through HAProxy, by Ray Serve's own variable."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def build_lane(
    config: HttpConfig,
    sidecar: SidecarLink,
    catalog: Catalog,
    handle: ModelHandle,
    metrics: Metrics,
    admission: Admission,
    running: Running,
    lane_table: Callable[[], str] | None = None,
) -> Lane:
    if config.write_interval_s is None:
        config = config.model_copy(update={"write_interval_s": 0.0 if haproxy_is_on() else _PROXY_INTERVAL_S})
    serve_timeout_s = cluster.serve_timeout_s()
    if serve_timeout_s is not None and within(serve_timeout_s) < config.request_timeout_s:
        config = config.model_copy(update={"request_timeout_s": within(serve_timeout_s)})
    keys = Keyring(config.keys)
    if keys.is_open:
        logger.warning("no API keys: whoever reaches this service may use it; docs/security.md says how to close it")
    secret = lane_secret() if haproxy_is_on() else None
    if lane_table is not None and haproxy_is_on() and secret is None:
        logger.warning(
            "HAProxy sends every request to the ingress first: set %s to one text where Ray starts, on every node, "
            "or RAY_AUTH_MODE=token",
            SECRET_VARIABLE,
        )
    process = serve.get_replica_context().replica_id.unique_id
    has_sidecar = sidecar.application is not None

    async def cancel_elsewhere(request_id: str, key: Key | None) -> bool:
        try:
            return has_sidecar and await sidecar.cancel(request_id, key, process)
        except Unanswered:
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
        secret=secret,
        lane_table=lane_table if haproxy_is_on() else None,
        cancel_elsewhere=cancel_elsewhere,
        heed_others=heed_others,
    )


def start_log() -> None:
    context = serve.get_replica_context()
    log_to_file(Path(get_serve_logs_dir()), context.app_name, context.replica_id.unique_id)


def start_reporter(
    metrics: Metrics,
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

    reporter = Reporter(metrics.read, source, send, loading=loading)
    if application is not None:
        reporter.start()
    return reporter
