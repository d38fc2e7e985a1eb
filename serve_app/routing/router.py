"""Sends requests to replicas over Ray Serve handles, with one retry and a deadline, and translates errors.

The only file beside `app.py` and `catalog.py` that knows how a model's application is reached.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.errors import DeadlineExceeded, EngineFailed, ModelNotReady, Overloaded, ReplicaDied, ServeAppError
from serve_app.messages import (
    Chunk,
    EventEncoder,
    GenerationRequest,
    ModelDescription,
    StreamTotal,
    TokenizedPrompt,
    Write,
)
from serve_app.routing.own_context import in_own_context
from serve_app.routing.side_stream import Address, Inbox

T = TypeVar("T")

logger = logging.getLogger("serve_app")

WARM_UP_RETRY_AFTER_S = 10.0
ENGINE_GRACE_S = 2.0  # the engine ends its own late requests; past this the router does
_MOST_BY_VALUE = 1_000_000  # bytes of a request; by default a replica's gRPC server takes 4 MiB


class Models(Protocol):
    """What the router needs to know about models. The catalog implements it."""

    def application_of(self, name: str) -> str:
        """The Serve application that serves the model: its own, or for an adapter its base's."""
        ...

    def why_not_running(self, name: str) -> str | None:
        """Why no replica of the model can answer now; None if one can."""
        ...

    def refusal_of(self, name: str) -> ModelNotReady | None:
        """The error for requests for this model; None if they may be sent."""
        ...

    def watch(self, refreshed: Callable[[], None]) -> None:
        """Call this after each refresh of the models' states."""
        ...

    def doubt(self) -> None:
        """A replica died or was missing, so the models' states may be out of date."""
        ...


class Router:
    """Answers requests through a replica of their model. It is one `ModelHandle` for all models.

    A model that has no replica yet, because it scaled to zero or its replica is being replaced, is waited for
    until the request's deadline, or until it is known that none will come. A replica that dies before it has answered
    anything costs one retry elsewhere.
    """

    def __init__(self, models: Models, inbox: Inbox) -> None:
        self._models = models
        self._inbox = inbox
        self._known: dict[str, _Methods] = {}
        self._calls: set[_Call] = set()
        models.watch(self._give_up_hopeless)

    async def answer(self, request: GenerationRequest) -> tuple[Chunk, ...]:
        """The whole answer, in one message.

        Raises `ReplicaDied`, `DeadlineExceeded`, `Overloaded`, `ModelNotReady`, or what the engine raised.
        """
        deadline = _deadline(request)

        async def attempt() -> tuple[Chunk, ...]:
            call = _Call((await self._methods(request.model)).answer(request), deadline, request.model)
            chunks: tuple[Chunk, ...] = await self._result(call, request)
            return chunks

        return await _with_one_retry(attempt, lambda: True, request)

    async def stream(self, request: GenerationRequest, encoder: EventEncoder, write: Write) -> StreamTotal:
        """The answer's events, which come past Ray by the side stream. Raises as `answer` does."""
        deadline = _deadline(request)
        has_output = False

        def write_on(events: bytes) -> None:
            nonlocal has_output
            has_output = True
            write(events)

        async def attempt() -> StreamTotal:
            model = await self._methods(request.model)
            await self._inbox.start()
            with self._inbox.open(write_on) as incoming:
                call = _Call(model.stream(request, encoder, incoming.address), deadline, request.model)
                incoming.on_broken = call.give_up
                try:
                    total: StreamTotal = await self._result(call, request)
                except (ServeAppError, asyncio.CancelledError):
                    if incoming.error is not None and not _is_cancelled():  # why the call was cancelled
                        raise incoming.error from None
                    raise
                await incoming.completed(total.num_writes)
            return total

        return await _with_one_retry(attempt, lambda: not has_output, request)

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """The prompt that the request would make. Raises as `answer` does."""
        deadline = _deadline(request)

        async def attempt() -> TokenizedPrompt:
            call = _Call((await self._methods(request.model)).tokenize(request), deadline, request.model)
            prompt: TokenizedPrompt = await self._result(call, request)
            return prompt

        return await _with_one_retry(attempt, lambda: True, request)

    async def describe(self, model: str) -> ModelDescription:
        """What a model's replica says about itself."""
        try:
            description: ModelDescription = await (await self._methods(model)).describe.remote()
        except Exception as exc:  # a boundary, as in `_result`
            raise self._translate(exc, model) from exc
        return description

    async def _result(self, call: "_Call", request: GenerationRequest) -> Any:
        """What the call returns; whatever ends this ends the replica's work."""
        self._calls.add(call)
        try:
            return await call.result()
        except ServeAppError:
            raise
        except asyncio.CancelledError as exc:
            if call.is_late:
                raise self._too_late(request) from exc
            if call.refusal is not None and not _is_cancelled():
                raise call.refusal from exc
            if call.is_broken or _is_cancelled():
                raise
            raise self._died(request.model) from exc
        except Exception as exc:  # a boundary: Ray Serve raises its own, gRPC's, and what the replica couldn't catch
            if call.is_late:
                raise self._too_late(request) from exc
            raise self._translate(exc, request.model) from exc
        finally:
            self._calls.discard(call)

    def _give_up_hopeless(self) -> None:
        """Refuse the calls that wait for a replica of a model that will have none, as new requests are refused."""
        for call in tuple(self._calls):
            if (refusal := self._models.refusal_of(call.model)) and call.is_waiting:
                call.refuse(refusal)

    def not_ready(self, request: GenerationRequest) -> ModelNotReady | None:
        """The error of a request whose time is over because its model has no replica; None for other reasons."""
        if why := self._models.why_not_running(request.model):
            what = f"model '{request.model}' is warming up and wasn't ready within {request.timeout_s:.0f} s"
            return ModelNotReady.because(what, why, WARM_UP_RETRY_AFTER_S)
        return None

    def _too_late(self, request: GenerationRequest) -> ServeAppError:
        return self.not_ready(request) or DeadlineExceeded(
            f"model '{request.model}' gave no answer within {request.timeout_s:.0f} s: "
            "ask for fewer tokens or try again later"
        )

    async def _methods(self, model: str) -> "_Methods":
        """The model's methods, looked up once, and again after a failure: applications come and go.

        Raises `ModelNotReady` where the model has failed since the request was let in.
        """
        if refusal := self._models.refusal_of(model):
            raise refusal
        application = self._models.application_of(model)
        if application not in self._known:
            try:
                handle = await asyncio.to_thread(serve.get_app_handle, application)
            except RayServeException as exc:
                raise ModelNotReady(f"model '{model}' isn't deployed", "model", 5.0) from exc
            self._known[application] = _Methods(handle)
        return self._known[application]

    def _died(self, model: str) -> ReplicaDied:
        return ReplicaDied(f"the replica of '{model}' died during this request: send it again", None, 1.0)

    def _translate(self, exc: Exception, model: str) -> ServeAppError:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(cause, ServeAppError):
            return cause
        if isinstance(cause, BackPressureError):
            return Overloaded(f"model '{model}' has as many waiting requests as it takes: retry later", None, 2.0)
        if isinstance(cause, DeploymentUnavailableError | RayActorError | OutOfMemoryError | AioRpcError):
            self._models.doubt()
        if isinstance(cause, DeploymentUnavailableError):
            self._known.pop(self._models.application_of(model), None)
            return ModelNotReady(f"model '{model}' has no replica that can serve", "model", 5.0)
        if isinstance(cause, RayActorError | OutOfMemoryError | RequestCancelledError | AioRpcError):
            return self._died(model)
        logger.error("model %s: a request failed on its way to a replica or back: %r", model, cause)
        return EngineFailed(f"model '{model}' couldn't be asked: try again; the ingress's log says why")


class _Methods:
    """What a model's replicas can be called for: handles made once, because Ray Serve takes its time to make one.

    Calls go straight to the replica by gRPC, which is cheaper than a Ray task. What is large, or may be answered at
    length, goes the way of Ray's objects, which know no bound.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        # Our messages are plain classes of a module, which pickle alone knows how to send.
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}
        by_value = handle.options(stream=True, _by_reference=False, **plain)
        by_reference = handle.options(stream=True, _by_reference=True, **plain)
        self._answer = {
            False: by_value.options(method_name="answer"),
            True: by_reference.options(method_name="answer"),
        }
        self._stream = {
            False: by_value.options(method_name="stream"),
            True: by_reference.options(method_name="stream"),
        }
        self._tokenize = by_reference.options(method_name="tokenize")
        self.describe = handle.options(method_name="describe", **plain)

    def answer(self, request: GenerationRequest) -> DeploymentResponseGenerator[Any]:
        is_long = request.sampling.num_answers > 1 or request.sampling.num_logprobs is not None
        return in_own_context(self._answer[is_long or _is_large(request)].remote, request)

    def stream(
        self, request: GenerationRequest, encoder: EventEncoder, address: Address
    ) -> DeploymentResponseGenerator[Any]:
        return in_own_context(self._stream[_is_large(request)].remote, request, encoder, address)

    def tokenize(self, request: GenerationRequest) -> DeploymentResponseGenerator[Any]:
        return in_own_context(self._tokenize.remote, request)


def _is_large(request: GenerationRequest) -> bool:
    return request.num_bytes > _MOST_BY_VALUE


class _Call:
    """A call to a replica. It ends at its deadline, when it is broken, and when its caller is cancelled."""

    def __init__(self, response: DeploymentResponseGenerator[Any], deadline: float, model: str) -> None:
        self._response = response
        self._limit = asyncio.timeout_at(deadline)
        self.model = model
        self.is_late = self.is_broken = False
        self.refusal: ModelNotReady | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no replica has taken it yet, which only a private part of Ray Serve knows."""
        return not self._response._replica_result_future.done()

    def refuse(self, refusal: ModelNotReady) -> None:
        """No replica will ever take it."""
        self.refusal = refusal
        self.give_up()

    def give_up(self) -> None:
        """Stop waiting, even for the replica's consent, which a hung one never gives."""
        self.is_broken = True
        with suppress(RuntimeError):  # it has ended already
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def result(self) -> Any:
        """The one thing that the replica's method yields. Raises `CancelledError` where it is late or given up."""
        is_complete = False
        try:
            async with self._limit:
                (result,) = [value async for value in self._response]
                is_complete = True
        except TimeoutError as exc:
            self.is_late = not self.is_broken
            raise asyncio.CancelledError from exc
        finally:
            if not is_complete:
                self._response.cancel()
        return result


def _is_cancelled() -> bool:
    """Whether the current task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _deadline(request: GenerationRequest) -> float:
    return asyncio.get_running_loop().time() + request.timeout_s + ENGINE_GRACE_S


async def _with_one_retry(
    attempt: Callable[[], Awaitable[T]], may_retry: Callable[[], bool], request: GenerationRequest
) -> T:
    """Once more where the replica died and `may_retry`."""
    try:
        return await attempt()
    except ReplicaDied:
        if not may_retry():
            raise
        logger.warning(
            "request id=%s model=%s: its replica died before it had answered, trying again", request.id, request.model
        )
    return await attempt()
