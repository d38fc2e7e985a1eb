"""The service's answers as its own code writes them, for tests of what reads them: no name stands here by hand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from serve_app.config.applications import MetricsConfig
from serve_app.dialects.captions import task as captions
from serve_app.dialects.captions.answer import Caption, CaptionPrompt
from serve_app.dialects.openai.chat_answer import ChatEvents, completion_json
from serve_app.dialects.usage import RunningUsage, Usage
from serve_app.errors import RequestError, ServeAppError, error_json
from serve_app.exchange.exchange import Exchange
from serve_app.messages import Chunk, FinishReason, ModelDescription
from serve_app.metrics.registry import Metrics
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.snapshot import Snapshot, Source
from serve_app.models.entry import ModelEntry
from tests.scripted_clock import Clock

DEMO = ModelDescription(("chat", "caption"), "transformers", "generic", 4096, takes_images=True)


def models() -> dict[str, Any]:
    """`GET /v1/models`: one model that is ready, one that has no place."""
    entries = [
        ModelEntry("demo", "ready", None, DEMO, 1, num_replicas=1),
        ModelEntry("big", "pending", "no node has 8 GPUs", declared_tasks=("chat",)),
    ]
    return {"object": "list", "data": [entry.as_json(with_reason=True) for entry in entries]}


def summary() -> dict[str, Any]:
    """`GET /metrics/summary` of 1,200 requests for `demo`: three failed, three run and four wait.

    The first tokens of the last minute came after 60 ms, of 20 in 1,197 after 1.5 s; it writes 500 tokens a second.
    """
    clock = Clock(100.0)
    sidecar = Sidecar(MetricsConfig(), clock, Clock(1e9))
    metrics = Metrics(CollectorRegistry(), ["demo"], clock)
    source = Source("ingress", "ingress", "in-1", "host:1", 1.0)

    def report(sequence: int) -> None:
        sidecar.record(Snapshot(source, sequence, clock.now_s, metrics.read()))

    metrics.watch_queue("demo", lambda: 4)
    report(1)
    for _ in range(20):
        _ask(metrics, clock, 1.5)
    for _ in range(1177):
        _ask(metrics, clock, 0.06)
    for outcome in ("overloaded", "overloaded", "invalid_image"):
        with metrics.request("demo") as tracker:
            tracker.outcome(outcome)
    for _ in range(3):
        metrics.request("demo").__enter__()
    for sequence in range(2, 16):
        clock.now_s += 1
        metrics.tokens.labels("demo", "generated").inc(500)
        report(sequence)
    return sidecar.summary()


def _ask(metrics: Metrics, clock: Clock, first_token_s: float) -> None:
    before = clock.now_s
    with metrics.request("demo") as tracker:
        clock.now_s += first_token_s
        tracker.first_token()
    clock.now_s = before


def chat_event(text: str, finish_reason: FinishReason | None = None) -> str:
    """The data of one event of a chat stream, after its first: a piece of text, or its end."""
    encoder = ChatEvents("chatcmpl-1", 1, "m", RunningUsage(is_sent=False, is_continuous=False))
    encoder.encode(Chunk("", 0, 7))  # the role comes first, in an event of its own
    return encoder.encode(Chunk(text, 1, 7, finish_reason)).decode().strip().removeprefix("data: ")


def chat_answer(text: str, finish_reason: FinishReason = "stop") -> dict[str, Any]:
    """`POST /v1/chat/completions`, whole."""
    return completion_json(
        cast("Exchange", SimpleNamespace(id="1", created_s=1)), "m", [Chunk(text, 3, 7, finish_reason)]
    )


def caption_answer(*texts: str) -> dict[str, Any]:
    """`POST /v1/captions` of one image, for which one caption was asked or several."""
    chunks = tuple(Chunk(text, 3, 7, "stop", queue_s=0.0) for text in texts)
    outcome = Caption(
        0, CaptionPrompt("Say.", num_captions=len(texts)), chunks, image_s=0.001, usage=Usage.of(chunks)
    )
    return captions._answer(cast("Exchange", SimpleNamespace(id="1", created_s=1)), "m", [outcome])


def captions_answer(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`POST /v1/captions` of several images, from each one's own answer or error."""
    items = [answer["data"][0] if "data" in answer else {"object": "error", **answer} for answer in answers]
    return caption_answer("") | {"data": [item | {"index": index} for index, item in enumerate(items)]}


def error(code: str, message: str, param: str | None = None, status: int = 400) -> dict[str, Any]:
    """An error's body, also of a code that the service doesn't have."""
    kind = RequestError.type if 400 <= status < 500 and status != 429 else "t"
    return error_json(type("AnyError", (ServeAppError,), {"code": code, "type": kind})(message, param))
