"""Every metric this service exports, as data: name, type, labels, help, and which process observes it.

The registry and the sidecar make their metrics from these, and so is the documentation's table.
"""

from dataclasses import dataclass
from typing import Literal

from serve_app.errors import concrete_errors

OK = "ok"
CLIENT_LEFT = "client_left"
NO_MODEL = "none"
CLEAN = "clean"  # of a caption in which the guard found nothing
OUTCOMES = frozenset({OK, CLIENT_LEFT, *(error.code for error in concrete_errors())})


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `labels` are its own; `replica` is added to all but the sidecar's by the sidecar."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    observed_by: Literal["ingress, lane", "ingress", "model", "sidecar"]


REQUESTS = MetricSpec(
    "serve_app_requests_total", "counter", ("model", "outcome"),
    "Requests ended, by outcome: ok, client_left or an error's code; replica `dead` is what died with its process.",
    "ingress, lane",
)  # fmt: skip
IN_FLIGHT = MetricSpec(
    "serve_app_requests_in_flight", "gauge", ("model",),
    "Requests being answered now.", "ingress, lane",
)  # fmt: skip
REQUEST_SECONDS = MetricSpec(
    "serve_app_request_seconds", "histogram", ("model",),
    "Seconds from a request's arrival to its end, whatever the outcome.", "ingress, lane",
)  # fmt: skip
TIME_TO_FIRST_TOKEN = MetricSpec(
    "serve_app_time_to_first_token_seconds", "histogram", ("model",),
    "Seconds from a request's arrival to the first piece of its answer.", "ingress, lane",
)  # fmt: skip
IMAGES = MetricSpec(
    "serve_app_images_total", "counter", ("model", "outcome"),
    "Images fetched and decoded, by outcome: ok, client_left or an error's code.", "ingress, lane",
)  # fmt: skip
IMAGE_SECONDS = MetricSpec(
    "serve_app_image_seconds", "histogram", ("model",),
    "Seconds to fetch, check and decode one image, whatever the outcome.", "ingress, lane",
)  # fmt: skip
CAPTION_GUARD = MetricSpec(
    "serve_app_caption_guard_total", "counter", ("model", "finding"),
    "Captions that the guard looked at, by what it found wrong, each finding once; clean where nothing.",
    "ingress, lane",
)  # fmt: skip
IGNORED_FIELDS = MetricSpec(
    "serve_app_ignored_fields_total", "counter", ("model",),
    "Unknown fields of messages, parts and tools that were read over, each once a request.", "ingress, lane",
)  # fmt: skip
MODEL_STATE = MetricSpec(
    "serve_app_model_state", "gauge", ("model", "state"),
    "1 for the state that the ingress sees the model in, 0 for every other, whether or not anybody asks for it.",
    "ingress",
)  # fmt: skip
MODEL_REPLICAS = MetricSpec(
    "serve_app_model_replicas", "gauge", ("model", "state"),
    "Replicas of the model that are serving, and starting, as the ingress sees them; adapters have their base's.",
    "ingress",
)  # fmt: skip
REFUSED_CONFIG = MetricSpec(
    "serve_app_refused_config", "gauge", (),
    "1 while the ingress keeps its list of models because the newest one is wrong, else 0.", "ingress",
)  # fmt: skip
TOKENS = MetricSpec(
    "serve_app_tokens_total", "counter", ("model", "kind"),
    "Tokens by kind; wasted is the part of generated whose client didn't get a whole answer.", "model",
)  # fmt: skip
INTER_TOKEN = MetricSpec(
    "serve_app_inter_token_seconds", "histogram", ("model",),
    "Seconds between a request's tokens; a chunk of n tokens after t seconds counts n times t/n.", "model",
)  # fmt: skip
QUEUE_SECONDS = MetricSpec(
    "serve_app_queue_seconds", "histogram", ("model",),
    "Seconds from a request's arrival at the replica to the start of the engine's work on it.", "model",
)  # fmt: skip
WAITING = MetricSpec(
    "serve_app_requests_waiting", "gauge", ("model",),
    "Requests that wait for their turn before any replica has them.", "ingress, lane",
)  # fmt: skip
WAITING_TOKENS = MetricSpec(
    "serve_app_waiting_tokens", "gauge", ("model",),
    "About how many tokens the prompts of the requests have that wait for their turn.", "ingress, lane",
)  # fmt: skip
TURN_SECONDS = MetricSpec(
    "serve_app_turn_seconds", "histogram", ("model",),
    "Seconds that a request waited for its turn: 0 where there was room, until it gave up where it did.",
    "ingress, lane",
)  # fmt: skip
QUEUED = MetricSpec(
    "serve_app_requests_queued", "gauge", ("model",),
    "Requests that a replica accepted and its engine doesn't run yet.", "model",
)  # fmt: skip
KV_CACHE_USE = MetricSpec(
    "serve_app_kv_cache_use_ratio", "gauge", ("model",),
    "Share of the engine's cache for keys and values that is in use, 0 to 1; none where it has no bound.", "model",
)  # fmt: skip
SIDECAR_START_TIME = MetricSpec(
    "serve_app_sidecar_start_time_seconds", "gauge", (),
    "When the metrics sidecar started, in seconds since 1970.", "sidecar",
)  # fmt: skip
SOURCES = MetricSpec(
    "serve_app_sources", "gauge", ("role",),
    "Processes that report to the sidecar now, by role: ingress or model.", "sidecar",
)  # fmt: skip
REFUSED_SNAPSHOTS = MetricSpec(
    "serve_app_refused_snapshots_total", "counter", ("reason",),
    "Snapshots the sidecar refused: too_many_samples, too_many_sources or too_many_models.", "sidecar",
)  # fmt: skip

METRICS: tuple[MetricSpec, ...] = (
    REQUESTS, IN_FLIGHT, REQUEST_SECONDS, TIME_TO_FIRST_TOKEN, IMAGES, IMAGE_SECONDS, CAPTION_GUARD,
    IGNORED_FIELDS, MODEL_STATE, MODEL_REPLICAS, REFUSED_CONFIG, WAITING, WAITING_TOKENS, TURN_SECONDS, TOKENS,
    INTER_TOKEN, QUEUE_SECONDS, QUEUED, KV_CACHE_USE, SIDECAR_START_TIME, SOURCES, REFUSED_SNAPSHOTS,
)  # fmt: skip


def metrics_table() -> str:
    """The catalog as a Markdown table, for docs/operations.md."""
    rows = ["| metric | type | labels | seen by | meaning |", "|---|---|---|---|---|"]
    for spec in METRICS:
        labels = spec.labels if spec.observed_by == "sidecar" else (*spec.labels, "replica")
        names = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{spec.name}` | {spec.type} | {names} | {spec.observed_by} | {spec.help} |")
    return "\n".join(rows) + "\n"
