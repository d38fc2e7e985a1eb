"""Changes under constant traffic: one model's args, a model more, a model less, a canary, a version that fails.

No request may fail meanwhile. The changes come as `serve deploy` with an edited file makes them.
"""

import asyncio
import copy
import json
import os
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.service import RunningService, put_config, serving

pytestmark = pytest.mark.slow

DEADLINE_S = 120.0  # generous: how long it takes isn't what is tested


def model(name: str, **changes: Any) -> dict[str, Any]:
    """A model that says its own name."""
    script = {"takes_images": False, "tokens": [changes.pop("says", name)]}
    return {
        "name": name,
        "import_path": "serve_app.app:build_model",
        "route_prefix": None,
        "args": {"source": "none", "engine": "scripted", "num_cpus": 0.1, "tasks": ["chat"],
                 "engine_args": script | changes},
    }  # fmt: skip


def file(models: list[dict[str, Any]], aliases: dict[str, dict[str, float]] | None = None) -> dict[str, Any]:
    routing = {"models": [one["name"] for one in models], "aliases": aliases or {}}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1"},
        "applications": [
            *models,
            {
                "name": "ingress",
                "import_path": "serve_app.app:build_ingress",
                "route_prefix": "/",
                "args": {"num_cpus": 0.2, "metrics_application": None},
                "deployments": [{"name": "Ingress", "user_config": routing}],
            },
        ],
    }


BASE = [model("a"), model("b")]
TOKEN = secrets.token_hex(32)


class Cluster:
    """A service whose config can be deployed again."""

    def __init__(self, service: RunningService) -> None:
        self.url = service.url
        self.service = service
        found = re.search(r"dashboard: (http://\S+)", (service.temp_dir / "up.log").read_text())
        assert found, "`serve-app up` told no dashboard"
        self._dashboard = found[1]

    async def deploy(self, values: dict[str, Any]) -> None:
        values = copy.deepcopy(values)
        values["http_options"]["port"] = int(self.url.rpartition(":")[2])
        await asyncio.to_thread(put_config, values, self._dashboard, TOKEN)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with serving(file(BASE), env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as running:
        yield Cluster(running)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False) as client:
        yield client


async def says(client: httpx.AsyncClient, name: str, text: str = "hello") -> str:
    """What the model said, or the error."""
    body = {"model": name, "messages": [{"role": "user", "content": text}]}
    try:
        response = await client.post("/v1/chat/completions", json=body)
    except httpx.TransportError as exc:
        return type(exc).__name__
    if response.status_code != 200:
        return f"{response.status_code} {response.json()['error']['message']}"
    said: str = response.json()["choices"][0]["message"]["content"]
    return said


@asynccontextmanager
async def traffic(client: httpx.AsyncClient, *names: str) -> AsyncIterator[dict[str, Counter[str]]]:
    """Three clients for each name, which ask as long as the block runs; what they were told, by name."""
    told: dict[str, Counter[str]] = {name: Counter() for name in names}
    is_over = False

    async def ask(name: str) -> None:
        while not is_over:
            told[name][await says(client, name)] += 1
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(ask(name)) for name in names for _ in range(3)]
    try:
        yield told
    finally:
        is_over = True
        await asyncio.gather(*tasks)


async def until(is_so: Callable[[], Awaitable[bool]], never: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await is_so():
        assert time.monotonic() < deadline, never
        await asyncio.sleep(0.05)


async def wait_for(client: httpx.AsyncClient, name: str, answer: str) -> None:
    """Until the model says this, five times in a row."""

    async def is_settled() -> bool:
        return {await says(client, name) for _ in range(5)} == {answer}

    await until(is_settled, f"{name} never said {answer!r}")


async def wait_for_entry(client: httpx.AsyncClient, name: str, field: str, value: Any) -> None:
    """Until the model's entry has this value, or a text that contains it, in this field."""

    async def is_there() -> bool:
        found = (await entry(client, name)).get(field)
        return found == value or (isinstance(found, str) and value in found)

    await until(is_there, f"{field} of {name} was never {value}")


async def entry(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/models/{name}")).json()
    return found


async def test_an_edited_model_is_redeployed_alone(cluster: Cluster, client: httpx.AsyncClient) -> None:
    process = (await says(client, "b", "!cache")).split()[0]
    async with traffic(client, "a", "b") as told:
        await cluster.deploy(file([model("a", says="edited"), model("b")]))
        await wait_for(client, "a", "edited")
    assert set(told["a"]) == {"a", "edited"}
    assert set(told["b"]) == {"b"}
    assert (await says(client, "b", "!cache")).split()[0] == process, "nobody touched it"


def pair(context_length: int) -> dict[str, Any]:
    one = model("pair", context_length=context_length, start_s=2)
    one["args"]["autoscaling"] = {"min_replicas": 2, "max_replicas": 2}
    return one


async def test_a_conversation_goes_back_to_its_replica(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file([*BASE, pair(100)]))
    await wait_for_entry(client, "pair", "replicas", 2)
    asked = [f"!cache {number}" for number in range(30)]
    first = [(await says(client, "pair", text)).split() for text in asked]
    again = [(await says(client, "pair", text)).split() for text in asked]
    assert len({process for process, _ in first}) == 2, "new conversations are shared among the replicas"
    assert again == [[process, "hit"] for process, _ in first]


async def test_an_edit_replaces_replica_by_replica(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file([*BASE, pair(100)]))
    await wait_for_entry(client, "pair", "replicas", 2)
    await cluster.deploy(file([*BASE, pair(50)]))
    seen: list[dict[str, Any]] = []

    async def is_settled() -> bool:
        seen.append(await entry(client, "pair"))
        return (seen[-1]["context_length"], seen[-1]["replicas"]) == (50, 2)

    async with traffic(client, "pair") as told:
        await until(is_settled, "the new version was never told")
    assert set(told["pair"]) == {"pair"}
    assert {found["state"] for found in seen} == {"ready"}
    assert {found["replicas"] for found in seen} == {1, 2}, "one at a time"


async def test_a_model_comes_and_goes(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file(BASE))
    await wait_for(client, "a", "a")
    async with traffic(client, "a", "b") as told:
        await cluster.deploy(file([*BASE, model("c", start_s=1)]))
        await wait_for(client, "c", "c")
        await cluster.deploy(file(BASE))

        async def is_gone() -> bool:
            return (await says(client, "c")).startswith("404")

        await until(is_gone, "it never went")
    assert {name: set(answers) for name, answers in told.items()} == {"a": {"a"}, "b": {"b"}}


async def test_a_model_deleted_while_it_streams_says_so(cluster: Cluster, client: httpx.AsyncClient) -> None:
    """Its stream has as long as the model's `drain_timeout_s`; one that takes longer ends with an error."""
    going = model("going", tokens=100_000, tokens_per_s=20)
    going["args"]["drain_timeout_s"] = 3
    await cluster.deploy(file([*BASE, going]))
    await wait_for_entry(client, "going", "state", "ready")
    body = {"model": "going", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    async with (
        traffic(client, "a", "b") as told,
        client.stream("POST", "/v1/chat/completions", json=body, timeout=DEADLINE_S) as response,
    ):
        lines = response.aiter_lines()
        assert "token0" in await anext(lines) + await anext(lines) + await anext(lines)
        await cluster.deploy(file(BASE))
        rest = [line async for line in lines if line]
    ended = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert (ended["code"], "'going'" in ended["message"]) == ("replica_died", True)
    assert len(rest) > 20, "it had some seconds"
    assert {name: set(answers) for name, answers in told.items()} == {"a": {"a"}, "b": {"b"}}


async def test_a_canary_grows_from_a_tenth_to_all(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file(BASE, {"stable": {"a": 1, "b": 0}}))
    await wait_for(client, "stable", "a")
    async with traffic(client, "stable") as told:
        for weights in ({"a": 90.0, "b": 10.0}, {"a": 50.0, "b": 50.0}):
            await cluster.deploy(file(BASE, {"stable": weights}))
            await wait_for_entry(client, "stable", "weights", weights)
            assert set(told["stable"]) <= {"a", "b"}
            told["stable"].clear()

            async def is_enough() -> bool:
                return told["stable"].total() >= 300

            await until(is_enough, "too little traffic")
            share = told["stable"]["b"] / told["stable"].total()
            assert abs(100 * share - weights["b"]) < 12, (weights, told)
        await cluster.deploy(file(BASE, {"stable": {"a": 0, "b": 100}}))
        await wait_for(client, "stable", "b")
    assert set(told["stable"]) == {"a", "b"}


async def test_with_spare_room_the_successor_comes_first(cluster: Cluster, client: httpx.AsyncClient) -> None:
    def surging(**changes: Any) -> dict[str, Any]:
        return model("surging", **changes) | {"deployments": [{"name": "Model", "max_surge_percent": 100}]}

    await cluster.deploy(file([*BASE, surging()]))
    await wait_for(client, "surging", "surging")
    replicas: set[int] = set()
    async with traffic(client, "surging") as told:
        await cluster.deploy(file([*BASE, surging(says="edited", start_s=2)]))

        async def is_edited() -> bool:
            replicas.add((await entry(client, "surging"))["replicas"])
            return await says(client, "surging") == "edited"

        await until(is_edited, "the edit never came")
        await cluster.deploy(file([*BASE, surging(start_error="no weights there: correct the path")]))
        await wait_for_entry(client, "surging", "reason", "the last deploy failed, and the one before serves")
        assert await says(client, "surging") == "edited"
    assert replicas <= {1, 2}
    assert set(told["surging"]) == {"surging", "edited"}


async def test_a_wrong_list_of_models_leaves_the_one_before(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file(BASE, {"stable": {"a": 1}}))
    await wait_for(client, "stable", "a")

    async def refused() -> str:
        told: str = (await client.get("/v1/models")).json().get("refused_config", "")
        return told

    async with traffic(client, "a", "b", "stable") as told:
        await cluster.deploy(file(BASE, {"stable": {"nobody": 1}}))

        async def is_sent() -> bool:
            return "'stable' leads to 'nobody', which isn't among the models" in await refused()

        await until(is_sent, "nobody said what is wrong")
        await asyncio.sleep(5)  # as long as Ray Serve takes to replace what it thinks has failed
        await cluster.deploy(file(BASE, {"stable": {"b": 1}}))
        await wait_for(client, "stable", "b")
        assert await refused() == ""
    assert {name: set(answers) for name, answers in told.items()} == {"a": {"a"}, "b": {"b"}, "stable": {"a", "b"}}


async def test_a_version_that_fails_to_start_costs_nothing(cluster: Cluster, client: httpx.AsyncClient) -> None:
    await cluster.deploy(file(BASE, {"stable": {"a": 1}}))
    await wait_for(client, "stable", "a")
    broken = model("next", start_error="no weights there: correct the path")
    async with traffic(client, "a", "stable") as told:
        await cluster.deploy(file([*BASE, broken], {"stable": {"a": 50, "next": 50}}))
        await wait_for_entry(client, "next", "state", "failed")
        assert "no weights there" in (await entry(client, "next"))["reason"]
        # It is away from here on, and its requests wait. They are answered because two more starts, of three seconds
        # each, have to fail before the deploy has.
        wrong = model("a", start_s=3, start_error="nor here: correct it")
        await cluster.deploy(file([wrong, model("b")], {"stable": {"a": 1}}))
        await wait_for_entry(client, "a", "reason", "nor here")
        await cluster.deploy(file(BASE, {"stable": {"a": 1}}))
        await wait_for(client, "a", "a")
    assert {name: set(answers) for name, answers in told.items()} == {"a": {"a"}, "stable": {"a"}}


def attempted(name: str, attempts: int, num_replicas: int = 1, surge: int = 0, **changes: Any) -> dict[str, Any]:
    one = model(name, **changes) | {"deployments": [{"name": "Model", "max_surge_percent": surge}]}
    replicas = {"min_replicas": num_replicas, "max_replicas": num_replicas}
    one["args"] |= {"start_attempts": attempts, "autoscaling": replicas}
    return one


async def test_a_failed_edit_costs_the_replica_that_it_stopped_whatever_the_attempts(
    cluster: Cluster, client: httpx.AsyncClient
) -> None:
    """Ray Serve stops a replica before its successor starts: what is left then serves on, and it is all that does."""

    def models(**changes: Any) -> list[dict[str, Any]]:
        return [
            attempted("once", 1, **changes),
            attempted("often", 20, **changes),
            attempted("two", 1, num_replicas=2, **changes),
            attempted("surging", 1, surge=100, **changes),
        ]

    await cluster.deploy(file([*BASE, *models()]))
    for name, num_replicas in {"once": 1, "often": 1, "two": 2, "surging": 1}.items():
        await wait_for_entry(client, name, "replicas", num_replicas)
    async with traffic(client, "two", "surging") as told:
        await cluster.deploy(file([*BASE, *models(start_error="no weights there: correct the path")]))
        for name in ("once", "often"):
            await wait_for_entry(client, name, "state", "failed")
        for name in ("two", "surging"):
            await wait_for_entry(client, name, "reason", "the last deploy failed, and the one before serves")
            await wait_for_entry(client, name, "replicas", 1)
    assert {name: set(answers) for name, answers in told.items()} == {"two": {"two"}, "surging": {"surging"}}
    # How often it was tried is in no status that we read, only in the log of Ray Serve's controller.
    log = "".join(file.read_text() for file in cluster.service.temp_dir.rglob("serve/controller_*.log"))
    failures = dict(re.findall(r"app='(\w+)'\) failed: .* failed to start (\d+) times", log))
    assert {name: failures[name] for name in ("once", "often", "two", "surging")} == {
        "once": "1", "often": "3", "two": "1", "surging": "1",
    }, "at most three for each replica that is to run"  # fmt: skip
    os.kill(int((await says(client, "two", "!cache")).split()[0]), signal.SIGKILL)
    await wait_for_entry(client, "two", "state", "failed")
    await cluster.deploy(file([*BASE, *models()]))
    for name in ("once", "often", "two", "surging"):
        await wait_for(client, name, name)
    await cluster.deploy(file(BASE))


@pytest.mark.parametrize("surge", [0, 100])
async def test_a_user_config_of_a_model_changes_nothing(
    cluster: Cluster, client: httpx.AsyncClient, surge: int
) -> None:
    """Ray Serve would take it for an edit that fails on the running replica, which no successor spares."""
    name = f"plain{surge}"
    await cluster.deploy(file([*BASE, attempted(name, 1, surge=surge)]))
    await wait_for(client, name, name)
    process = (await says(client, name, "!cache")).split()[0]
    wrong = attempted(name, 1, surge=surge)
    wrong["deployments"][0]["user_config"] = {"models": [name]}
    async with traffic(client, name) as told:
        before = cluster.service.log().count("a model has no user_config")
        await cluster.deploy(file([*BASE, wrong]))

        async def is_told() -> bool:
            assert (await entry(client, name))["state"] != "failed", "it was stopped"
            return cluster.service.log().count("a model has no user_config") > before

        await until(is_told, "its log never said so")
        told[name].clear()

        async def is_enough() -> bool:
            return told[name].total() >= 100

        await until(is_enough, "too little traffic")
    assert set(told[name]) == {name}
    found = await entry(client, name)
    assert (found["state"], found["replicas"], found.get("reason")) == ("ready", 1, None)
    assert (await says(client, name, "!cache")).split()[0] == process
    await cluster.deploy(file(BASE))


async def test_a_typo_in_the_args_costs_nothing(cluster: Cluster, client: httpx.AsyncClient) -> None:
    """Ray Serve tells of no deployment then, and keeps every replica."""
    await cluster.deploy(file([*BASE, pair(100)]))
    await wait_for_entry(client, "pair", "replicas", 2)
    await wait_for(client, "pair", "pair")
    typo, unknown = pair(100), pair(100)
    typo["args"]["max_ongoing_request"] = 3
    unknown["deployments"] = [{"name": "Modell"}]
    async with traffic(client, "pair") as told:
        for wrong, why in ((typo, "max_ongoing_request"), (unknown, "Modell")):
            await cluster.deploy(file([*BASE, wrong]))
            await wait_for_entry(client, "pair", "reason", "the last deploy failed, and the one before serves")
            await wait_for_entry(client, "pair", "reason", why)
            found = await entry(client, "pair")
            assert (found["state"], found["replicas"]) == ("ready", 2)
        told["pair"].clear()

        async def is_enough() -> bool:
            return told["pair"].total() >= 100

        await until(is_enough, "too little traffic")
        await cluster.deploy(file([*BASE, pair(50)]))
        await wait_for_entry(client, "pair", "context_length", 50)
    assert set(told["pair"]) == {"pair"}
    assert "reason" not in await entry(client, "pair")


async def test_who_waits_for_a_model_that_fails_is_told_when_it_does(
    cluster: Cluster, client: httpx.AsyncClient
) -> None:
    """Those that wait for a replica and those that wait for their turn, long before their own deadline."""

    def only(**changes: Any) -> dict[str, Any]:
        one = model("only", **changes)
        one["args"] |= {"max_ongoing_requests": 2, "max_batch_size": 1}
        return one

    await cluster.deploy(file([*BASE, only()]))
    await wait_for(client, "only", "only")
    await cluster.deploy(file([*BASE, only(start_s=2, start_error="no weights there: correct the path")]))

    async def is_away() -> bool:
        return bool((await entry(client, "only"))["replicas"] == 0)

    await until(is_away, "its replica never stopped")
    body = {"model": "only", "messages": [{"role": "user", "content": "hello"}]}
    answers = await asyncio.gather(
        *(client.post("/v1/chat/completions", json=body | {"stream": stream}, timeout=DEADLINE_S)
          for stream in (False, True) * 6)
    )  # fmt: skip
    # A stream that was kept alive with comments meanwhile has no status left to tell it by.
    errors = [json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"] for answer in answers]
    assert {error["code"] for error in errors} == {"model_not_ready"}
    assert {error["message"] for error in errors} == {
        "model 'only' failed to start: no weights there: correct the path"
    }
    assert (await entry(client, "only"))["state"] == "failed"
    await cluster.deploy(file(BASE))


async def test_what_runs_when_a_model_fails_runs_to_its_end(cluster: Cluster, client: httpx.AsyncClient) -> None:
    """On the replica that was to be replaced, while those that wait behind it are told that none will come."""

    def slow(**changes: Any) -> dict[str, Any]:
        one = model("slow", tokens=400, tokens_per_s=20, **changes)
        one["args"] |= {"drain_timeout_s": 100, "max_ongoing_requests": 1, "max_batch_size": 1}
        return one

    await cluster.deploy(file([*BASE, slow()]))
    await wait_for_entry(client, "slow", "state", "ready")
    body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    async with client.stream("POST", "/v1/chat/completions", json=body, timeout=DEADLINE_S) as response:
        lines = response.aiter_lines()
        assert "token0" in await anext(lines) + await anext(lines) + await anext(lines)
        await cluster.deploy(file([*BASE, slow(start_error="no weights there: correct the path")]))
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body | {"stream": False},
                                                  timeout=DEADLINE_S))  # fmt: skip
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert "token399" in "".join(rest)
    assert (await waiting).json()["error"]["message"] == (
        "model 'slow' failed to start: no weights there: correct the path"
    )
    await cluster.deploy(file(BASE))
