"""HAProxy sends a request to the replica that has its image or its conversation in cache, unless that is too busy."""

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from serve_app.haproxy.rules import with_lanes
from tests.haproxy.front import Front, started

pytestmark = pytest.mark.engine

MODELS = {"demo": "/models/demo", "even": "/models/even"}
NUM_REPLICAS = 3
TABLE = "".join(
    f"{task}\t{name}\t= 1 http-{name} {balancing}\n"
    for task in ("chat", "caption")
    for name, balancing in (("demo", "affinity"), ("even", "power_of_two"))
)
CHAT = "/v1/chat/completions"
Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with started(MODELS, num_replicas=dict.fromkeys(MODELS, NUM_REPLICAS)) as running:
        running.show(TABLE)
        yield running


def image(seed: int, num_bytes: int = 300) -> str:
    return base64.b64encode(random.Random(seed).randbytes(num_bytes)).decode()


def about(url: str, text: str, *, is_text_first: bool = False) -> Messages:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts[::-1] if is_text_first else parts}]


def replica_of(front: Front, path: str = CHAT, **body: Any) -> str:
    by: str = front.asked(path, json={"model": "demo", **body})["by"]
    return by


@pytest.mark.parametrize("num_bytes", [300, 30_000, 200_000])
def test_an_image_finds_its_replica_whatever_is_asked_about_it(front: Front, num_bytes: int) -> None:
    replicas: list[str] = []
    for seed in range(24):
        url = f"data:image/png;base64,{image(seed, num_bytes)}"
        asked = {
            replica_of(front, messages=about(url, "Short caption.")),
            replica_of(front, messages=about(url, "Tags, please, " * 20), temperature=0.5),
            replica_of(front, messages=about(url, "Detailed.", is_text_first=True)),
            replica_of(front, messages=[{"role": "system", "content": "Be brief."}, *about(url, "And this?")]),
            replica_of(front, "/v1/captions", image=url),
            replica_of(front, "/v1/captions", image={"url": url}, style="tags"),
            replica_of(front, "/v1/captions", style="tags", images=[url, "data:image/png;base64,AAAA"]),
        }
        assert len(asked) == 1
        replicas += asked
    assert min(Counter(replicas)[f"demo{number}"] for number in range(NUM_REPLICAS)) >= 2


def test_an_image_far_back_in_a_body_finds_its_replica_however_the_body_comes(front: Front) -> None:
    """HAProxy may hold more of one body than of the next."""
    url = f"data:image/png;base64,{image(5, 200_000)}"
    body = json.dumps({"model": "demo", "messages": about(url, "x" * 45_000, is_text_first=True)}).encode()
    pieces = (61_500, 62_500, 63_500, 64_500)
    found = {front.asked(CHAT, content=iter([body[:size], body[size:]]))["by"] for size in pieces for _ in range(4)}
    assert len(found) == 1


def test_an_image_by_its_address_or_as_bare_base64_has_one_too(front: Front) -> None:
    for same in ("https://site.example/a.jpg", image(1, 5_000)):
        found = {replica_of(front, "/v1/captions", image=same, seed=number) for number in range(8)}
        assert len(found) == 1
    found = {replica_of(front, "/v1/captions", image={"b64": image(2)}, seed=number) for number in range(8)}
    assert len(found) == 1
    found = {replica_of(front, "/v1/captions", image=f"https://site.example/{number}.jpg") for number in range(40)}
    assert len(found) == NUM_REPLICAS


@pytest.mark.parametrize("num_bytes", [300, 200_000])
def test_an_uploaded_image_has_one_whatever_is_asked_about_it(front: Front, num_bytes: int) -> None:
    replicas = list[str]()
    for seed in range(24):
        files = {"image": ("a.png", image(seed, num_bytes).encode(), "image/png")}
        found = {
            front.asked("/v1/captions", data={"model": "demo", **fields}, files=files)["by"]
            for fields in ({}, {"style": "tags"}, {"prompt": "What is this? " * 20, "seed": "3"})
        }
        assert len(found) == 1
        replicas += found
    assert min(Counter(replicas)[f"demo{number}"] for number in range(NUM_REPLICAS)) >= 2


@pytest.mark.parametrize("system", [None, "system", "developer"])
@pytest.mark.parametrize("as_parts", [False, True])
def test_a_conversation_stays_where_it_began(front: Front, system: str | None, as_parts: bool) -> None:
    replicas: list[str] = []
    for number in range(24):
        messages: Messages = [{"role": system, "content": "You are kind."}] if system else []
        asked = set()
        for turn in range(4):
            text = f'conversation {number}, turn {turn}: "url" is a word here, as "image": is'
            messages.append({"role": "user", "content": [{"type": "text", "text": text}] if as_parts else text})
            asked.add(replica_of(front, messages=messages))
            messages.append({"role": "assistant", "content": "An answer " * 100})
        assert len(asked) == 1
        replicas += asked
    assert len(set(replicas)) == NUM_REPLICAS


def test_raw_prompts_have_a_replica_too(front: Front) -> None:
    for path, field in (("/v1/completions", "prompt"), ("/generate", "inputs")):
        body = {field: "Once upon a time"} | ({"model": "demo"} if path == "/v1/completions" else {})
        asked = {front.asked(path, json=body, headers={"X-Model": "demo"})["by"] for _ in range(8)}
        assert len(asked) == 1


def test_nothing_to_go_by_goes_by_load(front: Front) -> None:
    assert {replica_of(front, messages=[]) for _ in range(9)} == {f"demo{number}" for number in range(NUM_REPLICAS)}


def test_a_model_may_be_balanced_by_load_alone(front: Front) -> None:
    body = {"model": "even", "messages": about(f"data:image/png;base64,{image(1)}", "What?")}
    assert len({front.asked(CHAT, json=body)["by"] for _ in range(9)}) == NUM_REPLICAS


def test_a_replica_that_is_too_busy_is_passed_over(front: Front) -> None:
    """One image, asked about by twelve at once: none of three replicas has more than 175 % of its share."""
    body = {"model": "demo", "messages": about("https://site.example/hot.jpg", "What?")}

    def hold(_: int) -> None:
        with front.client as client, pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body, headers={"x-hold": "1"}, timeout=3)

    before = {name: backend.num_requests for name, backend in front.models.items()}
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(hold, range(12)))
    taken = [backend.num_requests - before[name] for name, backend in front.models.items()]
    assert sum(taken) == 12
    assert max(taken) <= 8


def test_a_replica_that_goes_moves_its_own_requests_only(front: Front) -> None:
    def where() -> list[str]:
        return [replica_of(front, messages=about(f"https://site.example/{n}.jpg", "What?")) for n in range(30)]

    before = where()
    gone = front.models["demo1"]
    gone.is_healthy = False
    try:
        deadline = time.monotonic() + 60
        while "demo1" in (after := where()):
            assert time.monotonic() < deadline, "HAProxy never saw that its health checks fail"
        assert [new for old, new in zip(before, after, strict=True) if old != "demo1"] == [
            old for old in before if old != "demo1"
        ]
    finally:
        gone.is_healthy = True
    deadline = time.monotonic() + 60
    while where() != before:
        assert time.monotonic() < deadline, "it never came back"


def test_a_replica_that_dies_costs_no_request_that_it_had_not_begun() -> None:
    """Of two: the other has as much as it may, until HAProxy has seen that this one is gone."""
    ends: Counter[str] = Counter()

    def hold(number: int) -> None:
        body = {"model": "demo", "messages": about(f"https://site.example/{number}.jpg", "What?")}
        with running.client as client:
            try:
                ends[str(client.post(CHAT, json=body, headers={"x-hold": "1"}, timeout=5).status_code)] += 1
            except httpx.ReadTimeout:
                ends["held"] += 1

    with started({"demo": "/models/demo"}, num_replicas={"demo": 2}) as running:
        running.show(TABLE)
        gone = running.models["demo0"]
        with ThreadPoolExecutor(40) as pool:
            holding = [pool.submit(hold, number) for number in range(12)]
            while sum(len(replica.held) for replica in running.models.values()) < 12:
                time.sleep(0.05)
            assert gone.held
            gone.die()
            holding += [pool.submit(hold, number) for number in range(12, 40)]
            for one in holding:
                one.result()
    assert ends == {"held": 40}


def test_a_replicas_place_follows_from_its_name_alone() -> None:
    """Several HAProxys, and one before and after a change, agree."""
    places = []
    for num_replicas in (3, 4):
        with started({"demo": "/models/demo"}, num_replicas={"demo": num_replicas}) as front:
            servers = [line.split() for line in front.config.read_text().splitlines() if " weight " in line]
        places.append({words[1]: words[-1] for words in servers})
    assert len(set(places[0].values())) == 3
    assert places[0].items() < places[1].items()


def test_one_replica_needs_no_choice() -> None:
    with started({"demo": "/models/demo"}) as front:
        assert "serve_app_key" not in front.config.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "demo", "image": "' + b"A" * 3_000_000,
        b'{"model": "demo", ' + b'"url" ' * 20_000 + b"}",
        b'{"model": "demo", "image": [[[["' + b"[" * 50_000,
        b'{"model": "demo", "messages": ' + b"[" * 50_000,
        b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800\x00\xff"}]}',
        b'{"model": "demo", "messages": [{"role": 1, "content": {"a": 1}}]}',
    ],
)  # fmt: skip
def test_a_hostile_body_is_taken_to_a_replica_as_it_is(front: Front, content: bytes) -> None:
    begun = time.monotonic()
    told = front.asked(CHAT, content=content)
    assert told["by"].startswith("demo")
    assert told["num_bytes"] == len(content)
    assert time.monotonic() - begun < 5


def test_an_application_with_a_request_router_of_its_own_is_left_alone() -> None:
    def section(name: str) -> str:
        servers = "".join(f"    server r{number} 127.0.0.1:{9000 + number} check\n" for number in range(2))
        return f"backend {name}\n    http-reuse always\n{servers}"

    config = (
        "global\nfrontend http_frontend\n    bind *:8000\n    # Per-backend path ACLs\n"
        "    acl is_http-ours path /ours\n    acl is_http-other path /other\n"
        "    # Static routing based on path prefixes\n    default_backend default_backend\nbackend default_backend\n"
        + section("http-ours")
        + section("http-other")
        + section("http-other-via-ingress-request-router")
    )
    changed, lanes = with_lanes(config, "lanes.lua", "secret")
    assert [lane.name for lane in lanes] == ["http-ours", "http-other"]
    assert changed.count("backend http-ours-via-ingress-request-router\n") == 1
    assert changed.count("backend http-other-via-ingress-request-router\n") == 1
    assert changed.count("balance hash") == 1
