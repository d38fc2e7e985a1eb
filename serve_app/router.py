"""Requests to replicas: over Ray Serve handles, with one retry, a deadline, and foreign errors made ours.

The only file beside `app.py` and `catalog.py` that knows how a model's application is reached.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from ray import serve
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.errors import (
    DeadlineExceeded,
    EngineFailed,
    ModelNotReady,
    Overloaded,
    ReplicaDied,
    ServeAppError,
)
from serve_app.messages import Chunk, GenerationRequest, ModelDescription

logger = logging.getLogger("serve_app")

WARM_UP_RETRY_AFTER_S = 10.0
ENGINE_GRACE_S = 2.0  # the engine ends its own late requests; past this the router does


class Models(Protocol):
    """What the router must know of models; the catalog does."""

    def application_of(self, name: str) -> str:
        """The Serve application that serves the model: its own, or for an adapter its base's."""
        ...

    def why_not_running(self, name: str) -> str | None:
        """Why the model has no replica that could answer now; None where it has one."""
        ...


class Router:
    """Turns a request into chunks by way of one of its model's replicas.

    A model that has no replica yet, because it scaled to zero or its replica is being replaced, is waited for
    until the request's deadline.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._handles: dict[str, DeploymentHandle] = {}

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The replica's chunks. A replica that dies before its first chunk costs one retry elsewhere.

        Raises `ReplicaDied`, `DeadlineExceeded`, `Overloaded`, `ModelNotReady`, or what the engine raised.
        """
        deadline = asyncio.get_running_loop().time() + request.timeout_s
        has_output = False
        for is_last_try in (False, True):
            try:
                async with aclosing(self._attempt(request, deadline + ENGINE_GRACE_S)) as chunks:
                    async for chunk in chunks:
                        has_output = True
                        yield chunk
                return
            except ReplicaDied:
                if has_output or is_last_try:
                    raise
                logger.warning("request id=%s: its replica died before the first token, trying again", request.id)

    async def describe(self, model: str) -> ModelDescription:
        """What a model's replica says about itself."""
        try:
            description: ModelDescription = await (await self._handle(model)).describe.remote()
        except (RayError, RayServeException) as exc:
            raise self._translate(exc, model) from exc
        return description

    async def _attempt(self, request: GenerationRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """One replica's chunks; whatever ends this generator ends the replica's work."""
        handle = await self._handle(request.model)
        stream: DeploymentResponseGenerator[Chunk] = handle.options(stream=True).generate.remote(request)
        is_late = is_complete = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            stream.cancel()

        timer = asyncio.get_running_loop().call_at(deadline, give_up)
        try:
            async for chunk in stream:
                yield chunk
            is_complete = True
        except (RayError, RayServeException, asyncio.CancelledError) as exc:
            if is_late:
                raise self._too_late(request) from exc
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise self._translate(exc, request.model) from exc
        finally:
            timer.cancel()
            if not is_complete:
                stream.cancel()

    def _too_late(self, request: GenerationRequest) -> ServeAppError:
        if why := self._models.why_not_running(request.model):
            return ModelNotReady(
                f"model '{request.model}' is warming up and wasn't ready within {request.timeout_s:.0f} s ({why}): "
                "try again later",
                "model",
                WARM_UP_RETRY_AFTER_S,
            )
        return DeadlineExceeded(
            f"no answer within {request.timeout_s:.0f} s: ask for fewer tokens or try again later"
        )

    async def _handle(self, model: str) -> DeploymentHandle:
        """The model's handle, looked up once, and again after a failure: applications come and go."""
        application = self._models.application_of(model)
        if application not in self._handles:
            try:
                self._handles[application] = await asyncio.to_thread(serve.get_app_handle, application)
            except RayServeException as exc:
                raise ModelNotReady(f"model '{model}' isn't deployed", "model", 5.0) from exc
        return self._handles[application]

    def _translate(self, exc: RayError | RayServeException, model: str) -> ServeAppError:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(cause, ServeAppError):
            return cause
        if isinstance(cause, BackPressureError):
            return Overloaded(f"model '{model}' has as many waiting requests as it takes: retry later", None, 2.0)
        if isinstance(cause, DeploymentUnavailableError):
            self._handles.pop(self._models.application_of(model), None)
            return ModelNotReady(f"model '{model}' has no replica that can serve", "model", 5.0)
        if isinstance(cause, RayActorError | OutOfMemoryError | RequestCancelledError):
            return ReplicaDied(f"the replica of '{model}' died during this request: send it again", None, 1.0)
        logger.error("model %s: an error that no class names: %s", model, cause)
        return EngineFailed(f"model '{model}' failed on this request: its log says why")
