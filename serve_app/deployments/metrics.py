"""The sidecar, as Ray Serve runs it."""

import asyncio

from starlette.applications import Starlette

from serve_app.access.budget import Ask, Grant, Ledger
from serve_app.access.cancel_board import CancelBoard, Wish
from serve_app.access.keys import Key, Keyring
from serve_app.config.applications import MetricsConfig
from serve_app.deployments.lane import start_log
from serve_app.metrics.app import create_metrics_app
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.snapshot import Snapshot, Waiting


class MetricsDeployment:
    """The sidecar: `record` takes snapshots from the other processes, HTTP gives them out.

    Beside the numbers it keeps what those processes must agree on: the limits of keys, and which requests are to be
    called off.
    """

    async def __init__(self, config: MetricsConfig) -> None:  # type: ignore[misc] # Ray Serve awaits it
        start_log()
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

    async def listen(self, process: str, outcomes: dict[int, bool]) -> list[Wish]:
        return await self._cancel_board.listen(process, outcomes)

    async def cancel(self, request_id: str, key: Key | None, asker: str) -> bool:
        return await self._cancel_board.cancel(request_id, key, asker)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_metrics_app(self._sidecar, self._keys, self._allowed_hosts)
