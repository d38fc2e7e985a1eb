"""Translates Ray Serve's application states into ours, with one sentence that says why.

No path, class or traceback of Ray's or ours reaches a client.
"""

import re
from dataclasses import replace

from ray.serve.schema import ApplicationStatusOverview

from serve_app.models.entry import ModelEntry, State

MAX_REASON_CHARACTERS = 800
STARTING = "its replica is starting"

_OUR_ERROR = "serve_app.errors.ConfigError: "
# The text of pydantic's error, all that Ray Serve passes on of an application's args that don't validate. That of our
# configs has no values: one may be a secret.
_REFUSED_ARGS = re.compile(
    r"validation errors? for \w+\n(?:(?P<place>\S.*)\n)?[ ]+(?P<wrong>.*) "
    r"\[type=\w+(?:, input_value=.*, input_type=\w+)?\]"
)
_ERROR_CLASS = re.compile(r"^[\w.]*(Error|Exception|Exit|Interrupt): ")


def with_state(entry: ModelEntry, application: ApplicationStatusOverview | None) -> ModelEntry:
    """The model in the state of its application; None is a model without an application."""
    if application is None:
        absent = (
            f"no Serve application is named '{entry.name}', and no model has an adapter of that name: "
            "deploy it or take it out of the ingress's models"
        )
        return replace(entry, state="pending", reason=absent, num_replicas=0, num_starting=0)
    state, reason = model_state(application)
    own = f"model '{entry.name}': "
    if state == "failed" and reason and not reason.startswith(own):  # Ray Serve's builder knows no model's name
        reason = own + reason
    return replace(
        entry,
        state=state,
        reason=reason,
        num_replicas=num_serving(application),
        num_starting=num_starting(application),
    )


def without_room(entry: ModelEntry, why: str) -> ModelEntry:
    """The model with the reason why it waits for a node. One that serves only lacks a further replica."""
    if entry.state == "ready":
        return replace(entry, reason=entry.reason or f"a further replica waits for room: it {why}")
    if entry.state in ("loading", "pending", "unhealthy"):
        return replace(entry, state="pending", reason=f"model '{entry.name}': {why}")
    return entry


def model_state(application: ApplicationStatusOverview) -> tuple[State, str | None]:
    """Our state for Ray Serve's, with the reason where it isn't ready."""
    deployment = next(iter(application.deployments.values()), None)
    num_running = num_serving(application)
    status = str(application.status.value)
    if status == "DEPLOY_FAILED":
        why = last_line(deployment.message if deployment and deployment.message else application.message)
        if num_running:  # of the version before, which Ray Serve keeps
            return "ready", f"the last deploy failed, and the one before serves: {why}"
        return "failed", why
    if num_running:
        return "ready", None
    if status == "UNHEALTHY":
        return "unhealthy", last_line(deployment.message if deployment else application.message)
    if status == "RUNNING" and deployment is not None and deployment.status.value == "HEALTHY":
        return "scaled_to_zero", None
    message = deployment.message if deployment else application.message
    if "scheduled" in message:  # Ray Serve's words for a replica that no node has room for
        return "pending", last_line(message)
    # A failed start is tried again; what else Ray Serve says of a start (it scales, it is slow) says less than ours.
    return "loading", last_line(message) if "failed" in message else STARTING


def last_line(message: str) -> str:
    """The last sentence of what may be a traceback, so that no path of ours reaches a client."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    sentence = _ERROR_CLASS.sub("", lines[-1]) if lines else ""
    ours = [line for line in lines if line.startswith(_OUR_ERROR)]
    if ours:
        sentence = ours[-1].removeprefix(_OUR_ERROR)
    elif refused := _REFUSED_ARGS.search(message):
        place, wrong = refused["place"], refused["wrong"].removeprefix("Value error, ")
        sentence = f"{place}: {wrong}" if place else wrong
    return sentence[:MAX_REASON_CHARACTERS]


def replica_counts(application: ApplicationStatusOverview) -> dict[str, int]:
    """The numbers of replicas by Ray Serve's name of their state."""
    deployment = next(iter(application.deployments.values()), None)
    return {str(getattr(k, "value", k)): v for k, v in (deployment.replica_states if deployment else {}).items()}


def num_serving(application: ApplicationStatusOverview) -> int:
    """Replicas that answer. Those on a draining node do until their successors run."""
    counts = replica_counts(application)
    return counts.get("RUNNING", 0) + counts.get("PENDING_MIGRATION", 0)


def num_starting(application: ApplicationStatusOverview) -> int:
    """Replicas that don't answer yet, including those that wait for room."""
    counts = replica_counts(application)
    return sum(counts.get(state, 0) for state in ("STARTING", "UPDATING", "RECOVERING"))
