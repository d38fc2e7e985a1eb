"""Requests that others than we end, Ray Serve's own time-out or their process's death, on a real service."""

import copy
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psutil
import pytest

from tests.service import RunningService, serve_deploy, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
DEADLINE_S = 90.0
NUM_STREAMS = 5
CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"request_timeout_s": 20},
    "applications": [
        {
            "name": "script", "import_path": "serve_app.app:build_model", "route_prefix": "/models/script",
            "args": {"source": "none", "engine": "scripted", "num_cpus": 0.1, "engine_args": {"tokens_per_s": 5}},
        },
        {
            "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
            "args": {"num_cpus": 0.1},
            "deployments": [{"name": "Ingress", "user_config": {"models": ["script"]}}],
        },
        {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with serving(CONFIG) as service:
        yield service


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "script", "messages": [{"role": "user", "content": text}], **fields}


def counted(client: httpx.Client) -> dict[tuple[str, bool], float]:
    """Requests for the model by outcome, and whether they died with their process."""
    counts: dict[tuple[str, bool], float] = {}
    text = client.get("/metrics").text
    for outcome, replica, value in re.findall(
        r'^serve_app_requests_total\{model="script",outcome="(\w+)",replica="(\w+)"\} (\S+)$', text, re.MULTILINE
    ):
        key = (outcome, replica == "dead")
        counts[key] = counts.get(key, 0) + float(value)
    return counts


def wait_for(client: httpx.Client, key: tuple[str, bool], number: float) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (counts := counted(client)).get(key, 0) < number:
        assert time.monotonic() < deadline, counts
        time.sleep(0.5)
    assert counts[key] == number


def test_ray_serve_s_time_out_is_our_own_deadline(service: RunningService) -> None:
    """Below `request_timeout_s`, in the config or in the request's own header: told and counted as what it is."""
    asked = [
        (lane, headers) for lane in ("", "/models/script") for headers in ({}, {"x-request-timeout-seconds": "2"})
    ]
    with service.client as client:
        before = counted(client)
        for lane, headers in asked:
            answer = client.post(lane + CHAT, json=chat("!hang"), headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert answer.headers["x-should-retry"] == "false"
        key = ("deadline_exceeded", False)
        wait_for(client, key, before.get(key, 0) + len(asked))
        assert counted(client).get(("client_left", False), 0) == before.get(("client_left", False), 0)


def test_streams_that_die_with_their_ingress_are_counted(service: RunningService) -> None:
    with service.client as client, ExitStack() as stack:
        reading = []  # kept: an iterator that is dropped hangs up
        for _ in range(NUM_STREAMS):
            body = chat("!tokens 500", stream=True)
            response = stack.enter_context(client.stream("POST", CHAT, json=body))
            reading.append(response.iter_lines())
            next(reading[-1])
        deadline = time.monotonic() + DEADLINE_S
        while client.get("/metrics/summary").json()["models"]["script"]["in_flight"] < NUM_STREAMS:
            assert time.monotonic() < deadline  # what counts is the ingress's last word
            time.sleep(0.2)
        found = psutil.Process(service.process.pid).children(recursive=True)
        [ingress] = [one for one in found if "ServeReplica:ingress:" in " ".join(one.cmdline())]
        os.kill(ingress.pid, signal.SIGKILL)
        wait_for(client, ("replica_died", True), NUM_STREAMS)


def test_an_ingress_that_is_deployed_anew_leaves_no_dead_requests(service: RunningService) -> None:
    """Its last word counts what ended well since its last push."""
    values = copy.deepcopy(CONFIG)
    values["http_options"] |= {"host": "127.0.0.1", "port": int(service.url.rpartition(":")[2])}
    ingress = next(app for app in values["applications"] if app["name"] == "ingress")
    ingress["args"]["request_timeout_s"] = 100  # another argument is another replica
    dashboard = re.search(r"dashboard: (http://\S+)", (service.temp_dir / "up.log").read_text())
    assert dashboard, "`serve-app up` told no dashboard"
    is_over = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        with service.client as client:
            while not is_over.is_set():
                answers.append(client.post(CHAT, json=chat("!tokens 2")).status_code)

    with service.client as client:
        before = tally(client)
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            serve_deploy(values, dashboard[1], {**os.environ, "RAY_AUTH_MODE": "token"})
            time.sleep(15)  # the replica before ends meanwhile, and is silent for longer than the sidecar waits
        finally:
            is_over.set()
            asking.join()
        service.wait_until_ready()
        time.sleep(15)
        after = tally(client)
    assert after["ok"] - before["ok"] == answers.count(200) > 0
    assert after["replica_died"] == before["replica_died"]


def tally(client: httpx.Client) -> dict[str, int]:
    """Ever, of all processes: those that ended are in the summary alone."""
    row = (
        client.get("/metrics/summary")
        .json()["models"]
        .get("script", {"requests": 0, "clients_left": 0, "failures": {}})
    )
    failures: dict[str, int] = row["failures"]
    ok = row["requests"] - row["clients_left"] - sum(failures.values())
    return {"ok": ok, "replica_died": failures.get("replica_died", 0)}
