"""How the other processes talk to the sidecar over Ray Serve. Serving never depends on it."""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.access.budget import Ask, Grant
from serve_app.access.cancel_board import LISTEN_S, Wish
from serve_app.access.keys import Key
from serve_app.access.running import Running
from serve_app.errors import Unanswered
from serve_app.metrics.snapshot import Snapshot, Waiting
from serve_app.routing.own_context import in_own_context

logger = logging.getLogger("serve_app")

_RETRY_S = 2.0
# A little less than those who ask have patience for, so that a sidecar that hangs is told from somebody who left.
_RECORD_S = 2.5
_LOADING_S = _LEASE_S = 0.9
_CANCEL_S = 2.5


class SidecarLink:
    """Talks to the sidecar's application, and looks it up again after a failure. Every method raises `Unanswered`."""

    def __init__(self, application: str | None) -> None:
        self.application = application
        self._handle: DeploymentHandle | None = None

    async def record(self, snapshot: Snapshot) -> Waiting:
        """Returns what waits in the ingresses for the model that reports."""
        waiting: Waiting = await self._call(_RECORD_S, "record", snapshot)
        return waiting

    async def loading(self) -> dict[str, str]:
        """What each loading model is doing; empty without a sidecar."""
        steps: dict[str, str] = await self._call(_LOADING_S, "loading") if self.application else {}
        return steps

    async def lease(self, ask: Ask) -> Grant:
        grant: Grant = await self._call(_LEASE_S, "lease", ask)
        return grant

    async def cancel(self, request_id: str, key: Key | None, asker: str) -> bool:
        is_found: bool = await self._call(_CANCEL_S, "cancel", request_id, key, asker)
        return is_found

    async def listen(self, process: str, outcomes: dict[int, bool]) -> list[Wish]:
        wishes: list[Wish] = await self._call(LISTEN_S + _LEASE_S, "listen", process, outcomes)
        return wishes

    async def _call(self, within_s: float, method: str, *args: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(serve.get_app_handle, self.application)
            handle: Any = self._handle
            async with asyncio.timeout(within_s):
                return await in_own_context(getattr(handle, method).remote, *args)
        except Exception as exc:  # a boundary: Ray Serve's errors, gRPC's, the sidecar's own, and the time-out
            self._handle = None
            raise Unanswered(type(exc).__name__) from exc


async def heed_wishes(link: SidecarLink, process: str, running: Running) -> None:
    """Call off the requests of this process that others want called off, forever."""
    outcomes: dict[int, bool] = {}  # of the wishes, by their numbers
    while True:
        try:
            wishes = await link.listen(process, outcomes)
        except Unanswered:
            outcomes = {}
            await asyncio.sleep(_RETRY_S)
            continue
        outcomes = {wish.number: running.cancel(wish.request_id, wish.key) for wish in wishes}
