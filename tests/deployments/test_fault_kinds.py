"""Faults by kind, each on a running service: what the client is told, and that the next good request is answered.

Processes are really killed, blocked, cut off from their disk or given another time; nothing of Ray's is replaced.
docs/security.md lists all kinds, those that are tested elsewhere too.
"""

import asyncio
import json
import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.soak_processes import processes, wait_until_replaced
from tests.ray_nodes import ray_nodes
from tests.service import RunningService, free_port, serve_deploy, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 60.0  # generous: how long it takes isn't what is tested
CHAT = "/v1/chat/completions"
GOOD = "!echo all is well"
A_DAY_S = 86_400.0
WALL_CLOCK = Path(__file__).parent.parent / "wall_clock"
SCALING = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


def model(name: str, autoscaling: dict[str, Any] | None = None, **engine_args: Any) -> dict[str, Any]:
    args = {
        "source": "none", "engine": "scripted", "num_cpus": 0.1, "tasks": ["chat"], "max_batch_size": 64,
        "engine_args": {"takes_images": False, "tokens_per_s": 50} | engine_args,
    }  # fmt: skip
    if autoscaling:
        args["autoscaling"] = autoscaling
    return {"name": name, "import_path": "serve_app.app:build_model", "route_prefix": None, "args": args}


def config(*models: dict[str, Any], **ingress_args: Any) -> dict[str, Any]:
    ingress = {
        "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
        "args": {"num_cpus": 0.1, "keep_alive_s": 1, **ingress_args},
        "deployments": [{"name": "Ingress", "user_config": {"models": [one["name"] for one in models]}}],
    }  # fmt: skip
    metrics = {
        "name": "metrics",
        "import_path": "serve_app.app:build_metrics",
        "route_prefix": "/metrics",
        "args": {},
    }
    return {"proxy_location": "HeadOnly", "applications": [*models, ingress, metrics]}


TWO = {"min_replicas": 2, "max_replicas": 2}
ELASTIC = {"min_replicas": 0, "max_replicas": 2, "target_ongoing_requests": 8, "upscale_delay_s": 1,
           "downscale_delay_s": 1}  # fmt: skip
MODELS = [
    model("pair", TWO),
    model("single"),
    model("sleeper", {"min_replicas": 0, "max_replicas": 1}, start_s=3, tokens_per_s=0),
    model("elastic", ELASTIC),
]


@pytest.fixture(scope="module")
def wall_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says by how many seconds the service's wall clock is off."""
    path = tmp_path_factory.mktemp("clock") / "offset"
    path.write_text("0")
    return path


@pytest.fixture(scope="module")
def service(wall_clock: Path) -> Iterator[RunningService]:
    path = os.pathsep.join([str(WALL_CLOCK), os.environ.get("PYTHONPATH", "")])
    env = {**SCALING, "PYTHONPATH": path, "WALL_CLOCK_FILE": str(wall_clock)}
    with serving(config(*MODELS, num_replicas=2), env=env) as running:
        yield running


@pytest.fixture
async def client(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with new_client(service.url) as client:
        yield client


def new_client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # each request may meet another ingress
    return httpx.AsyncClient(base_url=url, timeout=2 * DEADLINE_S, trust_env=False, limits=limits)


@dataclass(frozen=True)
class Answer:
    """What a client got. `code` is that of the error, in the body or in the stream's last event."""

    status: int
    code: str | None
    text: str
    num_keep_alives: int = 0

    @property
    def end(self) -> tuple[int, str | None]:
        return self.status, self.code


async def ask(
    client: httpx.AsyncClient, name: str, text: str, stream: bool = False, timeout_s: float | None = None
) -> Answer:
    """One request; a connection that breaks is an answer without a status, its code the exception's class."""
    body = {"model": name, "stream": stream, "messages": [{"role": "user", "content": text}]}
    headers = {"x-request-timeout": str(timeout_s)} if timeout_s else {}
    try:
        response = await client.post(CHAT, json=body, headers=headers)
    except httpx.TransportError as exc:
        return Answer(0, type(exc).__name__, "")
    if response.headers["content-type"].startswith("text/event-stream"):
        return streamed(response.status_code, response.text.splitlines())
    if not response.headers["content-type"].startswith("application/json"):
        return Answer(response.status_code, None, response.text)
    told = response.json()
    if response.status_code != 200:
        return Answer(response.status_code, told["error"]["code"], told["error"]["message"])
    return Answer(200, None, told["choices"][0]["message"]["content"])


async def ask_and_tell(client: httpx.AsyncClient, name: str, text: str, begun: set[str]) -> Answer:
    """A streamed request whose text joins `begun` with its first token."""
    body = {"model": name, "stream": True, "messages": [{"role": "user", "content": text}]}
    lines = []
    async with client.stream("POST", CHAT, json=body) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if "token0" in line:
                begun.add(text)
    return streamed(response.status_code, lines)


def streamed(status: int, lines: list[str]) -> Answer:
    num_keep_alives = lines.count(": keep-alive")
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    *pieces, last = events
    code = None if last == "[DONE]" else json.loads(last)["error"]["code"]
    texts = [json.loads(piece)["choices"][0]["delta"].get("content", "") for piece in pieces]
    return Answer(status, code, "".join(texts), num_keep_alives)


def tokens(num_tokens: int) -> Answer:
    """The whole answer to `!tokens`."""
    return Answer(200, None, "".join(f"token{index} " for index in range(num_tokens)))


async def expect_good(client: httpx.AsyncClient, name: str) -> None:
    """The next good request is answered, however long it has to wait. `pytest -s` shows how long."""
    asked_s = time.monotonic()
    assert await ask(client, name, GOOD) == Answer(200, None, "all is well")
    print(f"{name} answered the next request after {time.monotonic() - asked_s:.1f} s")


async def expect_good_once_connected(client: httpx.AsyncClient, name: str) -> None:
    """As `expect_good`, where nothing may listen at first."""
    broken_s = time.monotonic()
    while (await ask(client, name, GOOD)).end != (200, None):
        assert time.monotonic() - broken_s < DEADLINE_S
        await asyncio.sleep(0.2)
    print(f"{name} answered again after {time.monotonic() - broken_s:.1f} s")


async def until(is_so: Callable[[], Any], never: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < deadline, never
        await asyncio.sleep(0.1)


def pids(service: RunningService, role: str) -> set[int]:
    return {process.pid for process in processes(service).get(role, [])}


def kill(service: RunningService, role: str) -> set[int]:
    """Kill one process of the role; which there were."""
    before = pids(service, role)
    os.kill(min(before), signal.SIGKILL)
    return before


def in_flight(service: RunningService, name: str) -> int:
    with service.client as client:
        told: dict[str, Any] = client.get("/metrics/summary").json()["models"].get(name, {})
    return int(told.get("in_flight", 0))


async def replaced(service: RunningService, role: str, before: set[int]) -> None:
    await asyncio.to_thread(wait_until_replaced, service, role, before)


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@BOTH
@pytest.mark.parametrize("text", ["!oom", "!nonsense nothing", "!nonsense untyped", "!nonsense foreign"])
async def test_an_engine_that_fails_before_its_first_word_is_a_500(
    service: RunningService, client: httpx.AsyncClient, text: str, stream: bool
) -> None:
    before = pids(service, "single:Model")
    assert (await ask(client, "single", text, stream)).end == (500, "engine_failed")
    await expect_good(client, "single")
    assert pids(service, "single:Model") == before, "its replica serves on"


@BOTH
@pytest.mark.parametrize(("text", "said"), [("!fail-after 3", tokens(3).text), ("!nonsense unfinished", "and then ")])
async def test_an_engine_that_fails_in_mid_answer_ends_it_with_an_error(
    client: httpx.AsyncClient, text: str, said: str, stream: bool
) -> None:
    answer = await ask(client, "single", text, stream)
    assert answer.end == (200 if stream else 500, "engine_failed")
    assert answer.text == said or not stream
    await expect_good(client, "single")


@BOTH
async def test_text_that_is_no_unicode_is_replaced(client: httpx.AsyncClient, stream: bool) -> None:
    assert await ask(client, "single", "!nonsense garbled", stream) == Answer(200, None, "? \x00 ?")
    await expect_good(client, "single")


@BOTH
async def test_a_request_that_hangs_ends_at_its_deadline_alone(
    service: RunningService, client: httpx.AsyncClient, stream: bool
) -> None:
    before = pids(service, "single:Model")
    beside = asyncio.create_task(ask(client, "single", "!tokens 150", stream=True))
    answer = await ask(client, "single", "!hang", stream, timeout_s=2)
    assert answer.end == (200 if stream else 504, "deadline_exceeded")
    assert (await beside) == tokens(150)
    await expect_good(client, "single")
    assert pids(service, "single:Model") == before


@BOTH
async def test_a_request_that_crashes_every_process_it_meets_is_tried_twice(
    service: RunningService, client: httpx.AsyncClient, stream: bool
) -> None:
    before = pids(service, "pair:Model")
    answer = await ask(client, "pair", "!crash", stream)
    # Where two deaths take longer than `keep_alive_s`, a comment has begun the stream.
    assert answer.end == (200 if answer.num_keep_alives else 503, "replica_died")
    await expect_good(client, "pair")
    await until(lambda: len(pids(service, "pair:Model") - before) == 2, "there are never two new replicas")


async def test_a_dead_engine_in_a_living_process_is_replaced(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    before = pids(service, "single:Model")
    assert (await ask(client, "single", "!unhealthy")).status == 200
    broken_s = time.monotonic()
    await until(lambda: not pids(service, "single:Model") & before, "nobody noticed")
    print(f"the dead engine's process was ended after {time.monotonic() - broken_s:.1f} s")
    await expect_good(client, "single")


async def test_a_process_that_hangs_ends_itself_and_what_it_had_not_begun_is_answered(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    before = pids(service, "single:Model")
    begun = asyncio.create_task(ask(client, "single", "!tokens 100000", stream=True))
    await asyncio.sleep(1)
    blocked_s = time.monotonic()
    assert (await ask(client, "single", "!block", timeout_s=2)).end == (504, "deadline_exceeded")
    waiting = asyncio.create_task(ask(client, "single", GOOD))
    assert (await begun).end == (200, "replica_died")
    print(f"the hung process was ended after {time.monotonic() - blocked_s:.1f} s")
    assert (await waiting) == Answer(200, None, "all is well")
    print(f"what it hadn't begun was answered after {time.monotonic() - blocked_s:.1f} s")
    await expect_good(client, "single")
    assert not pids(service, "single:Model") & before
    logs = [path.read_text(errors="replace") for path in service.temp_dir.rglob("worker-*.err")]
    assert any("stood in one place for 8 s" in log and "in _misbehave" in log for log in logs), (
        "the log says where it hung"
    )


async def test_a_killed_ingress_breaks_its_own_connections_alone(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    asked = [ask(client, "pair", "!tokens 400", stream=number % 2 == 0) for number in range(16)]
    asking = asyncio.gather(*asked)
    await until(lambda: in_flight(service, "pair") == len(asked), "they never run all at once")
    before = kill(service, "ingress:Ingress")
    await expect_good(client, "pair")
    ends = Counter(answer.end for answer in await asking)
    # Its proxy says so: in our words where nothing was sent yet, by a body that breaks off where something was.
    assert {(200, None)} < ends.keys() <= {(200, None), (503, "replica_died"), (0, "RemoteProtocolError")}, ends
    await replaced(service, "ingress:Ingress", before)
    await expect_good(client, "pair")


async def test_a_killed_proxy_breaks_connections_and_comes_back(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    asking = asyncio.gather(*(ask(client, "pair", "!tokens 200", stream) for stream in (False, True) * 2))
    await asyncio.sleep(2)
    kill(service, "proxy")
    assert {answer.end for answer in await asking} == {(0, "RemoteProtocolError")}
    await expect_good_once_connected(client, "pair")


async def test_a_killed_sidecar_costs_nothing(service: RunningService, client: httpx.AsyncClient) -> None:
    asking = asyncio.gather(*(ask(client, "pair", "!tokens 200", stream) for stream in (False, True) * 2))
    await asyncio.sleep(1)
    before = kill(service, "metrics:Metrics")
    await expect_good(client, "pair")
    assert await asking == [tokens(200)] * 4
    await replaced(service, "metrics:Metrics", before)
    await expect_good(client, "pair")


async def test_without_its_controller_the_service_serves_on(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    asking = asyncio.gather(*(ask(client, "pair", "!tokens 200", stream) for stream in (False, True) * 2))
    await asyncio.sleep(1)
    before = kill(service, "controller")
    await expect_good(client, "pair")
    assert await asking == [tokens(200)] * 4
    await until(lambda: pids(service, "controller") - before, "there is never another controller")
    kill(service, "single:Model")
    await expect_good(client, "single")  # the new controller has replaced it


async def test_a_full_log_disk_costs_lines_and_no_request(service: RunningService, client: httpx.AsyncClient) -> None:
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    await expect_good(client, "pair")
    roles = processes(service)
    writers = [one for role in ("pair:Model", "single:Model", "ingress:Ingress", "proxy") for one in roles[role]]
    with no_room_in_files(writers):
        size = log_size(service)
        asking = [ask(client, name, "!tokens 50", stream) for name in ("pair", "single") for stream in (False, True)]
        assert await asyncio.gather(*asking) == [tokens(50)] * 4
        assert (await ask(client, "single", "!oom")).end == (500, "engine_failed")  # an error that is logged
        assert log_size(service) == size, "nothing could be written"
    await expect_good(client, "pair")
    await until(lambda: log_size(service) > size, "with room again, nobody writes")


@contextmanager
def no_room_in_files(writers: list[psutil.Process]) -> Iterator[None]:
    """These processes can write to no file: each try fails as on a full disk, but with EFBIG for ENOSPC."""
    before = {one.pid: resource.prlimit(one.pid, resource.RLIMIT_FSIZE) for one in writers}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def log_size(service: RunningService) -> int:
    """Bytes of the requests' lines."""
    return sum(len(line) for line in service.log().splitlines() if " request id=" in line)


def shift(wall_clock: Path, offset_s: float) -> None:
    new = wall_clock.with_suffix(".new")
    new.write_text(str(offset_s))
    new.replace(wall_clock)  # at once: processes read it all the time


@pytest.mark.parametrize("offset_s", [A_DAY_S, -A_DAY_S], ids=["forwards", "backwards"])
async def test_a_clock_that_jumps_changes_no_deadline(
    service: RunningService, client: httpx.AsyncClient, wall_clock: Path, offset_s: float
) -> None:
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    before = processes(service)
    asking = asyncio.gather(*(ask(client, "pair", "!tokens 200", stream) for stream in (False, True) * 2))
    await asyncio.sleep(1)
    shift(wall_clock, offset_s)
    try:
        asked_s = time.monotonic()
        assert (await ask(client, "single", "!hang", timeout_s=2)).end == (504, "deadline_exceeded")
        assert time.monotonic() - asked_s >= 2
        assert await asking == [tokens(200)] * 4
        told = (
            await client.post(CHAT, json={"model": "pair", "messages": [{"role": "user", "content": GOOD}]})
        ).json()
        assert abs(told["created"] - time.time() - offset_s) < DEADLINE_S, "the clock has jumped"
        await asyncio.sleep(2)  # a health check of each
        await expect_good(client, "pair")
    finally:
        shift(wall_clock, 0)
    await asyncio.sleep(2)
    await expect_good(client, "single")
    after = processes(service)
    for role in ("pair:Model", "single:Model", "ingress:Ingress", "metrics:Metrics", "controller", "proxy"):
        assert {one.pid for one in after[role]} == {one.pid for one in before[role]}, role


async def test_a_stream_that_waits_for_a_cold_start_is_kept_alive(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    assert (await client.get("/v1/models/sleeper")).json()["state"] == "scaled_to_zero"
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)  # for asleep counts as ready
    answer = await ask(client, "sleeper", GOOD, stream=True)
    assert (answer.end, answer.text) == ((200, None), "all is well")
    assert answer.num_keep_alives >= 2


async def test_a_loaded_replica_is_not_killed_for_being_busy(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    await expect_good(client, "sleeper")
    before = pids(service, "sleeper:Model")
    until_s, num_answers = time.monotonic() + 10, 0
    while time.monotonic() < until_s:
        answers = await asyncio.gather(*(ask(client, "sleeper", "!tokens 20000") for _ in range(32)))
        assert {answer.end for answer in answers} == {(200, None)}
        num_answers += len(answers)
    print(f"{num_answers} answers of 20,000 tokens")
    await expect_good(client, "sleeper")
    assert pids(service, "sleeper:Model") == before


async def test_scale_down_lets_running_streams_end(service: RunningService, client: httpx.AsyncClient) -> None:
    async def num_replicas() -> int:
        found: int = (await client.get("/v1/models/elastic")).json()["replicas"]
        return found

    async with asyncio.timeout(2 * DEADLINE_S):
        waking: list[asyncio.Task[Answer]] = []
        while await num_replicas() < 2:
            running = sum(not one.done() for one in waking)
            waking += [asyncio.create_task(ask(client, "elastic", "!tokens 1000")) for _ in range(10 - running)]
        assert all(one.result() == tokens(1000) for one in waking if one.done())
        long = [asyncio.create_task(ask(client, "elastic", "!tokens 900", stream=True)) for _ in range(4)]
        await asyncio.sleep(1)
        for one in waking:
            one.cancel()
        seen = [2]
        while not all(one.done() for one in long):
            seen.append(await num_replicas())
            await asyncio.sleep(0.2)
    assert 1 in seen, "one replica was let go while they ran"
    assert [one.result() for one in long] == [tokens(900)] * 4
    await expect_good(client, "elastic")


async def both_replaced(service: RunningService, role: str, old: set[int]) -> None:
    await until(lambda: len(pids(service, role) - old) == 2, f"{role} was never replaced")
    await until(lambda: not pids(service, role) & old, f"{role} never ended")


async def test_an_update_of_a_model_and_the_ingress_under_load_fails_no_request(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    before = {role: pids(service, role) for role in ("pair:Model", "ingress:Ingress")}
    edited = config(model("pair", TWO, context_length=10_000), *MODELS[1:], num_replicas=2, keep_alive_s=2)
    edited["http_options"] = {"host": "127.0.0.1", "port": int(service.url.rpartition(":")[2])}
    found = re.search(r"dashboard: (http://\S+)", (service.temp_dir / "up.log").read_text())
    assert found, "`serve-app up` told no dashboard"
    answers: list[Answer] = []
    is_over = False

    async def load(stream: bool) -> None:
        while not is_over:
            answers.append(await ask(client, "pair", "!tokens 50", stream))

    clients = [asyncio.create_task(load(number % 2 == 0)) for number in range(8)]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}  # as a cluster that `serve-app up` starts wants it
    await asyncio.to_thread(serve_deploy, edited, found[1], environment)
    for role, old in before.items():
        await both_replaced(service, role, old)
    is_over = True
    await asyncio.gather(*clients)
    print(f"{len(answers)} requests during the update")
    assert Counter(answer.end for answer in answers) == {(200, None): len(answers)}
    assert all(answer.text == tokens(50).text for answer in answers)
    await expect_good(client, "pair")


async def test_a_node_that_leaves_takes_only_what_its_replicas_had_begun() -> None:
    wide = model("pair", TWO)
    wide["args"]["num_cpus"] = 2  # so that each node has room for one
    values = config(wide) | {"http_options": {"host": "127.0.0.1", "port": free_port()}}
    on_the_head = {"ray_actor_options": {"num_cpus": 0.1, "resources": {"front": 0.1}}}
    values["applications"][1]["deployments"][0].update(on_the_head)
    head = {"num_cpus": 3, "resources": {"front": 1}, "include_dashboard": True, "dashboard_port": free_port()}
    with ray_nodes([head, {"num_cpus": 2}]) as nodes:
        await asyncio.to_thread(serve_deploy, values, nodes.dashboard_url, nodes.environment)
        async with new_client(f"http://127.0.0.1:{values['http_options']['port']}") as client:
            await two_replicas(client, "pair")
            texts, begun = [f"!tokens {number}" for number in range(500, 508)], set[str]()
            streams = [asyncio.create_task(ask_and_tell(client, "pair", text, begun)) for text in texts]
            await until(lambda: len(begun) == len(texts), "they never began")
            waiting = [asyncio.create_task(ask(client, "pair", f"!slow {number}")) for number in range(4, 12)]
            await asyncio.sleep(1)
            await asyncio.to_thread(nodes.kill, nodes.ids[1])
            await expect_good(client, "pair")
            ends = Counter(answer.end for answer in await asyncio.gather(*waiting))
            assert ends.keys() == {(200, None)}, "what hadn't begun was tried again"
            ends = Counter(answer.end for answer in await asyncio.gather(*streams))
            assert ends.keys() == {(200, None), (200, "replica_died")}, ends
            await expect_good(client, "pair")


async def two_replicas(client: httpx.AsyncClient, name: str) -> None:
    deadline = time.monotonic() + 4 * DEADLINE_S
    while time.monotonic() < deadline:
        try:
            response = await client.get(f"/v1/models/{name}")
        except httpx.TransportError:  # the proxy starts
            response = httpx.Response(503)
        if response.status_code == 200 and response.json()["replicas"] == 2:
            return
        await asyncio.sleep(0.3)
    raise AssertionError(f"{name} never had two replicas")


async def test_sigterm_lets_running_requests_end_and_refuses_new_ones(
    service: RunningService, client: httpx.AsyncClient
) -> None:
    """The file's last test: it ends the service."""
    await asyncio.to_thread(service.wait_until_ready, DEADLINE_S)
    asking = asyncio.gather(*(ask(client, "pair", "!tokens 300", stream) for stream in (False, True) * 3))
    await asyncio.sleep(2)
    service.process.send_signal(signal.SIGTERM)
    refused = await ask(client, "pair", GOOD)
    while refused.status == 200:  # until the signal has arrived
        refused = await ask(client, "pair", GOOD)
    assert refused.end == (503, "shutting_down")
    assert (await client.get("/ready")).status_code == 503
    assert await asking == [tokens(300)] * 6
    assert await asyncio.to_thread(service.process.wait, DEADLINE_S) == 0
