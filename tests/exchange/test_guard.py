"""Keys, limits, deadlines and cancellation, before two ingress replicas and a direct lane, as clients meet them.

Once with Ray Serve's own proxy and once with HAProxy, which hand headers and errors on differently.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.service import RunningService, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 60.0
KEYS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {"models": ["script"]},
    "root": {"admin": True},
    "few": {"requests_per_minute": 6},
    "fresh": {"requests_per_minute": 6},
    "images": {"images_per_minute": 3},
    "tokens": {"tokens_per_minute": 40},
}
LANES = ("", "/models/script")
PROXIES: dict[str, dict[str, str]] = {
    "ray": {},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}


def secret(name: str) -> str:
    return f"sa-secret-of-{name}"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret(name)}"}


def write_keys(path: Path, keys: dict[str, dict[str, Any]]) -> None:
    entries = [
        {"name": name, "sha256": hashlib.sha256(secret(name).encode()).hexdigest()} | more
        for name, more in keys.items()
    ]
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"keys": entries}))


def config(keys_file: Path) -> dict[str, Any]:
    http = {
        "keys": {"file": str(keys_file), "reload_s": 0.2},
        "admission": {"max_waiting_requests": 4},
        "keep_alive_s": 1,
    }

    def model(name: str, **args: Any) -> dict[str, Any]:
        own = {"source": "none", "engine": "scripted", "num_cpus": 0.1, "http": http, **args}
        return {
            "name": name,
            "import_path": "serve_app.app:build_model",
            "route_prefix": f"/models/{name}",
            "args": own,
        }

    return {
        "applications": [
            model("script", max_ongoing_requests=100, engine_args={"tokens_per_s": 50}),
            model("narrow", max_ongoing_requests=2, max_batch_size=1, engine_args={"capacity": 1}),
            {
                "name": "ingress",
                "import_path": "serve_app.app:build_ingress",
                "route_prefix": "/",
                "args": {"num_cpus": 0.1, "num_replicas": 2, **http},
                "deployments": [{"name": "Ingress", "user_config": {"models": ["script", "narrow"]}}],
            },
            {
                "name": "metrics",
                "import_path": "serve_app.app:build_metrics",
                "route_prefix": "/metrics",
                "args": {"keys": http["keys"]},
            },
        ]
    }


@pytest.fixture(scope="module", params=list(PROXIES))
def proxy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def keys_file(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    write_keys(path, KEYS)
    return path


@pytest.fixture(scope="module")
def service(keys_file: Path, proxy: str) -> Iterator[RunningService]:
    with serving(config(keys_file), env=PROXIES[proxy]) as running:
        yield running


def ask(
    service: RunningService, text: str | list[dict[str, Any]], key: str = "alice", lane: str = "", **more: Any
) -> httpx.Response:
    """One request on a connection of its own, so that either ingress replica may get it."""
    headers = more.pop("headers", {}) | bearer(key)
    body = {"model": "script", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(
        f"{service.url}{lane}/v1/chat/completions", json=body, headers=headers, timeout=DEADLINE_S, trust_env=False
    )


def get(service: RunningService, path: str, key: str | None = None) -> httpx.Response:
    return httpx.get(f"{service.url}{path}", headers=bearer(key) if key else {}, timeout=DEADLINE_S, trust_env=False)


def delete(service: RunningService, request_id: str, key: str, lane: str = "") -> httpx.Response:
    url = f"{service.url}{lane}/v1/requests/{request_id}"
    return httpx.delete(url, headers=bearer(key), timeout=DEADLINE_S, trust_env=False)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("lane", LANES)
def test_without_a_key_only_probes_are_answered(service: RunningService, lane: str) -> None:
    for path in ("/v1/models", "/v1/models/script"):
        assert error_of(get(service, lane + path)) == (401, "invalid_api_key")
    for path in ("/v1/chat/completions", "/v1/captions"):
        refused = httpx.post(f"{service.url}{lane}{path}", json={}, trust_env=False)
        assert error_of(refused) == (401, "invalid_api_key")
    good = ("authorization", f"Bearer {secret('alice')}")
    for headers in ([("authorization", "Bearer no")], [good, good], [("authorization", secret("alice"))]):
        wrong = httpx.get(f"{service.url}{lane}/v1/models", headers=headers, trust_env=False)
        assert error_of(wrong) == (401, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"
    assert get(service, f"{lane}/health").status_code == 200
    assert get(service, f"{lane}/ready").status_code == 200
    assert ask(service, "!echo hello", lane=lane).status_code == 200


def test_the_numbers_are_for_administrators(service: RunningService) -> None:
    for path in ("/metrics", "/metrics/summary"):
        assert get(service, path).status_code == 401
        assert error_of(get(service, path, "alice")) == (403, "forbidden")
        assert get(service, path, "root").status_code == 200


def test_a_key_sees_and_uses_its_own_models_alone(service: RunningService) -> None:
    assert {entry["id"] for entry in get(service, "/v1/models", "alice").json()["data"]} == {"script", "narrow"}
    assert {entry["id"] for entry in get(service, "/v1/models", "bob").json()["data"]} == {"script"}
    assert ask(service, "!echo a", "bob").status_code == 200
    assert error_of(ask(service, "!echo a", "bob", model="narrow")) == (403, "forbidden")
    assert error_of(get(service, "/v1/models/narrow", "bob")) == (403, "forbidden")
    assert error_of(ask(service, "!echo a", "bob", lane="/models/narrow", model=None)) == (403, "forbidden")
    assert error_of(ask(service, "!echo a", "bob", model="nothing")) == (404, "model_not_found")


def test_openai_client_raises_its_own_classes(service: RunningService) -> None:
    def client(key: str) -> openai.OpenAI:
        http = httpx.Client(trust_env=False)
        return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, http_client=http, max_retries=0)

    with client("wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with client(secret("bob")) as bob, pytest.raises(openai.PermissionDeniedError):
        bob.chat.completions.create(model="narrow", messages=[{"role": "user", "content": "hi"}])
    with client(secret("few")) as few:
        ask_few = few.chat.completions.create
        for _ in range(6):
            ask_few(model="script", messages=[{"role": "user", "content": "!echo hi"}])
        with pytest.raises(openai.RateLimitError):
            ask_few(model="script", messages=[{"role": "user", "content": "!echo hi"}])


def test_a_limit_holds_over_both_replicas_and_the_direct_lane(service: RunningService) -> None:
    answers = [ask(service, "!echo hi", "fresh", LANES[number % 2]) for number in range(24)]
    assert [answer.status_code for answer in answers].count(200) in (6, 7)  # a seventh may refill meanwhile
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {error_of(answer) for answer in refused} == {(429, "rate_limit_exceeded")}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert answers[0].headers["x-ratelimit-limit-requests"] == "6"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "5"
    assert "6 requests a minute" in refused[0].json()["error"]["message"]


def test_images_and_tokens_are_limited_too(service: RunningService) -> None:
    image = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    part = {"type": "image_url", "image_url": {"url": image}}
    content: list[dict[str, Any]] = [part, {"type": "text", "text": "hi"}]
    assert ask(service, content, "images").status_code == 200
    assert ask(service, content * 2, "images").status_code == 200
    assert error_of(ask(service, content, "images")) == (429, "rate_limit_exceeded")
    assert ask(service, "!echo no image", "images").status_code == 200
    answers = [ask(service, "!tokens 60", "tokens") for _ in range(4)]  # the tokens of one are a moment on their way
    assert answers[0].status_code == 200
    refused = answers[-1]
    assert error_of(refused) == (429, "rate_limit_exceeded")
    assert "tokens a minute" in refused.json()["error"]["message"]


def test_a_new_key_is_good_and_an_old_one_refused_without_a_restart(service: RunningService, keys_file: Path) -> None:
    write_keys(keys_file, {name: more for name, more in KEYS.items() if name != "bob"} | {"carol": {}})
    _until(lambda: get(service, "/v1/models", "carol").status_code == 200)
    _until(lambda: all(get(service, "/v1/models", "bob").status_code == 401 for _ in range(6)))
    write_keys(keys_file, KEYS)
    _until(lambda: get(service, "/v1/models", "bob").status_code == 200)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("lane", LANES)
def test_an_answer_has_one_id_and_it_is_the_clients_where_that_is_plain(service: RunningService, lane: str) -> None:
    given = ask(service, "!echo hi", lane=lane, headers={"x-request-id": "trace-7.a"})
    assert given.headers.get_list("x-request-id") == ["trace-7.a"]
    assert given.json()["id"] == "chatcmpl-trace-7.a"
    (own,) = ask(service, "!echo hi", lane=lane).headers.get_list("x-request-id")
    assert len(own) >= 16
    odd = ask(service, "!echo hi", lane=lane, headers={"x-request-id": "a b;c"})
    assert odd.status_code == 200
    assert odd.headers.get_list("x-request-id") == [odd.json()["id"].removeprefix("chatcmpl-")]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_may_ask_for_a_nearer_deadline(service: RunningService, lane: str, is_streamed: bool) -> None:
    late = ask(service, "!slow 50", lane=lane, stream=is_streamed, headers={"x-request-timeout": "0.5"})
    assert error_of(late) == (504, "deadline_exceeded")
    assert late.headers["x-should-retry"] == "false"
    for wrong in ("soon", "-1", "0", "nan", "inf", ""):
        assert error_of(ask(service, "!echo", lane=lane, headers={"x-request-timeout": wrong}))[0] == 400
    assert ask(service, "!echo hi", lane=lane, headers={"x-request-timeout": "30"}).status_code == 200


def test_a_stream_without_news_is_kept_alive(service: RunningService) -> None:
    slow = ask(service, "!slow 4", stream=True)
    lines = [line for line in slow.text.splitlines() if line]
    assert lines.count(": keep-alive") >= 2
    assert lines[-1] == "data: [DONE]"
    late = ask(service, "!slow 50", stream=True, headers={"x-request-timeout": "3"})
    assert late.status_code == 200, "told before the deadline that it is alive"
    assert (
        json.loads(late.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    )


def test_large_headers_are_refused(service: RunningService, proxy: str) -> None:
    refused = ask(service, "!echo hi", headers={"x-filler": "x" * 33_000})
    assert refused.status_code == 431
    assert ask(service, "!echo hi", headers={"x-filler": "x" * 15_000}).status_code == 200


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("other_lane", LANES)
@pytest.mark.parametrize("attempt", range(2))
def test_a_stream_is_called_off_by_its_key_alone(
    service: RunningService, lane: str, other_lane: str, attempt: int
) -> None:
    body = {"model": "script", "messages": [{"role": "user", "content": "!tokens 100000"}], "stream": True}
    url = f"{service.url}{lane}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=bearer("alice"), timeout=DEADLINE_S, trust_env=False) as stream:
        lines = stream.iter_lines()
        event = json.loads(next(lines).removeprefix("data: "))
        request_id = stream.headers["x-request-id"] if attempt == 0 else event["id"]
        assert error_of(delete(service, request_id, "bob", other_lane)) == (404, "request_not_found")
        called_off = delete(service, request_id, "root" if attempt == 1 else "alice", other_lane)
        assert called_off.status_code == 200, called_off.text
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    assert error_of(delete(service, request_id, "alice", other_lane)) == (404, "request_not_found")
    _until(lambda: _tokens(service)["wasted"] > 0)
    _until_at_rest(service)


def test_a_whole_answer_is_called_off_too(service: RunningService) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, service, "!hang", headers={"x-request-id": "whole-1"})
        _until(lambda: delete(service, "whole-1", "alice").status_code == 200)
        assert error_of(waiting.result()) == (499, "request_cancelled")
    _until_at_rest(service)


def test_what_waits_for_its_turn_is_called_off_or_late_and_leaves_no_trace(service: RunningService) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        running = [
            pool.submit(ask, service, "!slow 50", model="narrow", headers={"x-request-id": f"runs-{number}"})
            for number in range(4)
        ]
        time.sleep(1.0)
        late = ask(service, "!echo hi", model="narrow", headers={"x-request-timeout": "0.5"})
        assert late.status_code in (503, 504)
        for number, one in enumerate(running):
            assert delete(service, f"runs-{number}", "alice").status_code == 200
            assert error_of(one.result()) == (499, "request_cancelled")
    assert ask(service, "!echo hi", model="narrow").status_code == 200


def test_beyond_the_bound_a_model_says_when_to_come_back(service: RunningService) -> None:
    with ThreadPoolExecutor(max_workers=40) as pool:
        answers = list(pool.map(lambda _: ask(service, "!slow 1", model="narrow"), range(40)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert len(refused) < 40
    assert {error_of(answer) for answer in refused} == {(503, "overloaded")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert ask(service, "!echo hi", model="narrow").status_code == 200


def test_refusals_stand_in_the_audit_log_without_secrets(service: RunningService) -> None:
    asked = ask(service, "my secret prompt", "bob", model="narrow", headers={"x-request-id": "audited-1"})
    assert asked.status_code == 403

    def logged() -> list[str]:
        return [line for line in service.log().splitlines() if "audited-1" in line]

    _until(lambda: any('"event": "refused"' in line for line in logged()))
    line = next(line for line in logged() if '"event": "refused"' in line)
    told = json.loads(line[line.index("{") :])
    assert (told["key"], told["model"], told["status"], told["code"]) == ("bob", "narrow", 403, "forbidden")
    assert "secret" not in line


def _tokens(service: RunningService) -> dict[str, float]:
    lines = get(service, "/metrics", "root").text.splitlines()
    values = dict.fromkeys(("generated", "wasted"), 0.0)
    for line in lines:
        for kind in values:
            if line.startswith("serve_app_tokens_total") and f'kind="{kind}"' in line:
                values[kind] += float(line.rsplit(" ", 1)[1])
    return values


def _until_at_rest(service: RunningService) -> None:
    """Until the engine makes no more tokens."""
    deadline = time.monotonic() + DEADLINE_S
    before = -1.0
    while (now := _tokens(service)["generated"]) != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(2.5)  # the processes report every second
