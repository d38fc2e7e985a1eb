"""A request that HAProxy sends straight to a model's lane is answered as one that went by way of the ingress.

One service behind HAProxy. Each request goes both ways: to HAProxy, and to the ingress's own port behind it.
"""

import csv
import hashlib
import io
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.drawings import b64, png
from tests.service import RunningService, free_port, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

KEYS: dict[str, dict[str, Any]] = {
    "all": {},
    "narrow": {"models": ["only"]},
    "three": {"requests_per_minute": 3},
    "boss": {"admin": True},
}
CHAT = "/v1/chat/completions"
LANES = ("http-demo", "http-script", "http-other-rules")
HELLO = [{"role": "user", "content": "Hello"}]
CIRCLE = b64(png("red", "circle", (120, 120)))


def model(name: str, route_prefix: str | None, **args: Any) -> dict[str, Any]:
    return {
        "name": name, "import_path": "serve_app.app:build_model", "route_prefix": route_prefix,
        "args": {"num_cpus": 0.1, **args},
    }  # fmt: skip


def config(keys_file: Path, models: list[str], aliases: dict[str, dict[str, float]]) -> dict[str, Any]:
    http = {"keys": {"file": str(keys_file)}}
    return {
        "proxy_location": "HeadOnly",
        "applications": [
            model("demo", "/models/demo", source="demo", engine="transformers", http=http),
            model("script", "/models/script", source="none", engine="scripted", tasks=["chat"], http=http),
            model("apart", None, source="none", engine="scripted", http=http),
            model("other-rules", "/models/other", source="none", engine="scripted", http=http | {"keep_alive_s": 3}),
            {
                "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
                "args": {"num_cpus": 0.1, **http},
                "deployments": [{"name": "Ingress", "user_config": {"models": models, "aliases": aliases}}],
            },
            {
                "name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics",
                "args": http,
            },
        ],
    }  # fmt: skip


@dataclass(frozen=True)
class Ways:
    """A service and its two ways in."""

    service: RunningService
    haproxy: httpx.Client
    ingress: httpx.Client
    script_url: str  # of this model's own port, behind HAProxy
    stats: str

    def to_backend(self, backend: str) -> int:
        """How many requests HAProxy has sent there."""
        page = httpx.get(self.stats, timeout=10, trust_env=False).text
        rows = csv.DictReader(io.StringIO(page.removeprefix("# ")))
        return sum(int(row["stot"]) for row in rows if row["pxname"] == backend and row["svname"] == "BACKEND")

    def goes_to(self, lane: str | None, send: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
        """Send by HAProxy, which must choose this lane; None is none of them."""
        before = {name: self.to_backend(name) for name in LANES}
        answer = send(self.haproxy)
        grown = [name for name in LANES if self.to_backend(name) > before[name]]
        assert grown == ([] if lane is None else [lane]), answer.text
        return answer


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("keys")
    entries = [{"name": name, "sha256": _sha(name), **rights} for name, rights in KEYS.items()]
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": entries}))
    ports = {name: free_port() for name in ("stats", "metrics")}
    env = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["stats"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["metrics"]),
    }
    models = ["demo", "script", "apart", "other-rules"]
    aliases = {"only": {"demo": 1.0}, "half": {"script": 1.0, "apart": 1.0}}
    with serving(config(folder / "keys.yaml", models, aliases), env=env, options=["--haproxy"]) as service:
        own = {name: f"http://127.0.0.1:{_port(folder, name)}" for name in ("ingress", "script")}
        with _client(service.url) as haproxy, _client(own["ingress"]) as ingress:
            both = Ways(service, haproxy, ingress, own["script"], f"http://127.0.0.1:{ports['stats']}/stats;csv")
            _wait_for_lanes(both)
            yield both


def _sha(name: str) -> str:
    return hashlib.sha256(f"key-of-{name}".encode()).hexdigest()


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, trust_env=False, headers=_bearer("all"))


def _bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def _port(folder: Path, application: str) -> int:
    """Where its replica serves HTTP itself."""
    (path,) = folder.rglob("haproxy.cfg")
    assert path.stat().st_mode & 0o077 == 0, "the secret stands in it"
    section = path.read_text().partition(f"\nbackend http-{application}\n")[2]
    found = re.search(r"server SERVE_REPLICA\S+ \S+:(\d+) ", section)
    assert found, section
    return int(found[1])


def _wait_for_lanes(ways: Ways) -> None:
    deadline = time.monotonic() + 30
    while True:
        num_before = ways.to_backend("http-demo")
        ways.haproxy.post(CHAT, json={"model": "demo", "messages": HELLO, "max_tokens": 1})
        if ways.to_backend("http-demo") > num_before:
            return
        assert time.monotonic() < deadline, "no request goes straight to its lane"
        time.sleep(0.3)


def chat(**fields: Any) -> dict[str, Any]:
    return {"path": CHAT, "json": {"model": "demo", "messages": HELLO, "max_tokens": 6, "temperature": 0, **fields}}


def captions(**fields: Any) -> dict[str, Any]:
    return {"path": "/v1/captions", "json": {"model": "demo", "image": CIRCLE, **fields}}


def form(*images: bytes, **fields: str) -> dict[str, Any]:
    files = [("image", ("a.png", image, "image/png")) for image in images]
    return {"path": "/v1/captions", "data": {"model": "demo", **fields}, "files": files}


SAME: dict[str, dict[str, Any]] = {
    "a chat": chat(),
    "a stream": chat(stream=True, stream_options={"include_usage": True}),
    "three answers with logprobs": chat(n=3, logprobs=True, top_logprobs=2),
    "an image": chat(messages=[{"role": "user", "content": [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CIRCLE}"}},
    ]}]),
    "a completion": {"path": "/v1/completions", "json": {"model": "demo", "prompt": ["a", "b"], "max_tokens": 4}},
    "a caption": captions(style="short"),
    "captions of several images": {"path": "/v1/captions", "json": {"model": "demo", "images": [CIRCLE] * 3}},
    "streamed captions": captions(stream=True),
    "an upload": form(b64decode(CIRCLE), style="short"),
    "several uploads": form(*[b64decode(CIRCLE)] * 3, b"no image"),
    "an upload for an alias": form(b64decode(CIRCLE), model="only"),
    "a bad upload": form(b"no image"),
    "TGI's generate": {"path": "/generate", "json": {"inputs": "Hello"}, "headers": {"x-model": "demo"}},
    "TGI's stream": {"path": "/generate_stream?model=demo", "json": {"inputs": "Hello"}},
    "TGI's tokens": {"path": "/tokenize?model=demo", "json": {"inputs": "Hello"}},
    "an alias": chat(model="only"),
    "an alias at TGI's": {"path": "/generate?model=only", "json": {"inputs": "Hello"}},
    "an id": chat() | {"headers": {"x-request-id": "my-own-id"}},
    "an id that can't be used": chat() | {"headers": {"x-request-id": "a b c"}},
    "ignored fields": chat(messages=[{"role": "user", "content": "Hello", "mood": "good"}]),
    "a wrong value": chat(temperature=9),
    "a field that isn't there": chat(temprature=1),
    "two bodies' keys": {"path": CHAT, "content": b'{"model": "demo", "model": "script", "messages": []}'},
    "two names outside": {"path": "/generate?model=demo", "json": {"inputs": "x"}, "headers": {"x-model": "script"}},
    "no JSON": {"path": CHAT, "content": b'{"model": "demo", "messages": ['},
    "another type": chat() | {"headers": {"content-type": "text/csv"}},
    "a bad image": captions(image="!"),
    "too many tokens": chat(max_tokens=1_000_000),
    "a task that it doesn't do": captions(model="script"),
    "no time": chat() | {"headers": {"x-request-timeout": "0.001"}},
    "no time at all": chat() | {"headers": {"x-request-timeout": "soon"}},
    "no key": chat() | {"headers": {"authorization": ""}},
    "a wrong key": chat() | {"headers": {"authorization": "Bearer nobody"}},
    "a key without the right": chat() | {"headers": _bearer("narrow")},
    "a key for the alias alone": chat(model="only") | {"headers": _bearer("narrow")},
    "an engine's fault": chat(model="script", messages=[{"role": "user", "content": "!oom"}]),
    "an unknown model": chat(model="dmo"),
    "a model without a lane": chat(model="apart"),
    "a model with rules of its own": chat(model="other-rules"),
}  # fmt: skip
OTHER_WAYS: dict[str, str | None] = {
    "an unknown model": None, "a model without a lane": None,
    "a model with rules of its own": None, "a task that it doesn't do": None,
    "an engine's fault": "http-script", "two names outside": "http-script",
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_answer_is_the_same(ways: Ways, name: str) -> None:
    request = dict(SAME[name])
    path = request.pop("path")
    straight = ways.goes_to(OTHER_WAYS.get(name, "http-demo"), lambda client: client.post(path, **request))
    assert plain(straight) == plain(ways.ingress.post(path, **request))


def plain(answer: httpx.Response) -> dict[str, Any]:
    """Without what is another's in each answer: ids, times, and headers of the connection."""
    text = re.sub(
        r'"(id|created|request_id|total_s|first_token_s|queue_s|[a-z_]+_s)": ?("[^"]*"|[\d.e+-]+)', "", answer.text
    )
    headers = {
        name: value for name, value in answer.headers.items() if name not in ("date", "content-length", "server")
    }
    if headers.get("x-request-id") != "my-own-id":
        headers["x-request-id"] = "one of ours" if re.fullmatch("[0-9a-f-]{32,36}", headers["x-request-id"]) else "?"
    return {"status": answer.status_code, "headers": headers, "text": text}


def test_an_alias_keeps_its_shares_by_both_ways(ways: Ways) -> None:
    def send(_: int) -> str:
        answer = ways.haproxy.post(CHAT, json={"model": "half", "messages": HELLO, "max_tokens": 1})
        model: str = answer.json()["model"]
        return model

    models = [send(number) for number in range(300)]
    assert 100 < models.count("script") < 200  # of one it has a lane, of the other none
    assert models.count("script") + models.count("apart") == 300


def test_a_keys_limit_is_one_for_both_ways(ways: Ways) -> None:
    headers = _bearer("three")
    clients = [ways.haproxy, ways.ingress, ways.haproxy, ways.ingress, ways.haproxy]
    statuses = [client.post(CHAT, json=chat()["json"], headers=headers).status_code for client in clients]
    assert statuses[:3] == [200, 200, 200]
    assert set(statuses[3:]) == {429}


def test_a_request_is_called_off_by_whichever_way(ways: Ways) -> None:
    asked = {"model": "script", "messages": [{"role": "user", "content": "!slow 60"}], "stream": True}
    for first, second in ((ways.haproxy, ways.ingress), (ways.ingress, ways.haproxy)):
        with first.stream("POST", CHAT, json=asked, headers={"x-request-id": "to-be-ended"}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert second.delete("/v1/requests/to-be-ended").json()["cancelled"] is True
            assert "request_cancelled" in "".join(lines)


def test_the_lanes_are_told_to_nobody_else(ways: Ways) -> None:
    for path in ("/-/lanes", "/-//lanes", "/%2D/lanes"):
        for headers in ({}, {"x-serve-app-lanes": "1"}, {"x-serve-app-lanes": ""}):
            assert ways.haproxy.get(path, headers=headers).status_code == 404
            assert ways.ingress.get(path, headers=headers).status_code == 404


def test_no_client_can_say_what_was_drawn(ways: Ways) -> None:
    """`narrow` may use the alias `only` alone, which leads to `demo`."""
    headers = _bearer("narrow") | {"x-serve-app-drawn": "guessed only script"}
    answer = ways.haproxy.post(CHAT, json=chat(model="only")["json"], headers=headers)
    assert answer.json()["model"] == "demo"
    for url in (ways.haproxy.base_url, ways.script_url):  # the second goes past HAProxy, which takes the header out
        path = f"{url}/models/script{CHAT}"
        answer = httpx.post(path, json=chat(model="only")["json"], headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
