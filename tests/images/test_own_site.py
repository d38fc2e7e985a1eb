"""What a service without keys takes for its own: never a request that another site's page made a browser send."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.types import Message

from serve_app.access.keys import Keyring
from serve_app.cli.up import _allow_own_name
from serve_app.config.applications import MetricsConfig
from serve_app.config.http import HttpConfig, KeysConfig
from serve_app.errors import Forbidden
from serve_app.images.own_site import require_own_site
from serve_app.metrics.app import create_metrics_app
from serve_app.metrics.sidecar import Sidecar
from serve_app.playground.door import Door
from tests.own_lane import bearer, own_lane

CHAT = "/v1/chat/completions"
ECHO = {"messages": [{"role": "user", "content": "!echo hi"}]}
OWN_HOSTS = [
    "localhost", "LOCALHOST:8000", "localhost.", "a.localhost", "127.0.0.1", "127.8.9.1:80", "[::1]:8000",
    "10.1.2.3:8000", "serve-svc:8000", "[fd00::1]", "",
]  # fmt: skip
OTHER_HOSTS = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0x7f000001",
    "127.1", "2130706433", "[::1", "::1", "localhost:8000:80", "a@localhost", "localhost/x", " ", "é.example",
    "evil.example, localhost", "a" * 5000,
]  # fmt: skip
ALLOWED = ("gpu.house", "*.inner.example", "api.example:8443")


def is_own(allowed: tuple[str, ...] = (), cors: tuple[str, ...] = (), **headers: str) -> bool:
    try:
        require_own_site([(name.encode(), value.encode("latin-1")) for name, value in headers.items()], allowed, cors)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_localhost_and_addresses_are_its_own(host: str) -> None:
    assert is_own(host=host)
    assert is_own()  # of HTTP/1.0


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_another_name_is_not(host: str) -> None:
    with pytest.raises(Forbidden) as raised:
        require_own_site([(b"host", host.encode("latin-1"))], (), ())
    assert raised.value.param == "Host"
    assert len(raised.value.message) < 300
    assert is_own(("*",), host=host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("gpu.house", True), ("GPU.HOUSE.:99", True), ("a.inner.example", True), ("a.b.inner.example:1", True),
        ("inner.example", False), ("xinner.example", False), ("api.example:8443", True), ("api.example", False),
        ("api.example:84", False), ("evil.example", False),
    ],
)  # fmt: skip
def test_names_that_are_listed(host: str, expected: bool) -> None:
    assert is_own(ALLOWED, host=host) is expected
    assert is_own(ALLOWED, host="localhost", origin=f"https://{host}") is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8000", True), ("http://LOCALHOST:3000", True), ("http://127.0.0.1", True),
        ("http://[::1]:9", True), ("null", False), ("https://evil.example", False), ("http://10.0.0.9", False),
        ("http://localhost.evil.example", False), ("http://evil.example/http://localhost", False), ("", False),
        ("http://serve-svc", False), ("chrome-extension://abcdef", False), ("http://localhost@evil.example", False),
        ("localhost", False),
    ],
)  # fmt: skip
def test_pages_of_other_sites(origin: str, expected: bool) -> None:
    assert is_own(host="localhost:8000", origin=origin) is expected
    assert is_own((), (origin,), host="localhost:8000", origin=origin)
    assert is_own((), ("*",), host="localhost:8000", origin=origin)


def test_a_page_of_the_service_itself_is_its_own() -> None:
    assert is_own(host="10.1.2.3:8000", origin="http://10.1.2.3:8000")
    assert not is_own(host="10.1.2.3:8000", origin="http://10.1.2.3:9000")
    assert not is_own(host="evil.example", origin="http://evil.example")  # rebound


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane"), keys={"environment": "NO_SUCH_KEYS"}, allowed_hosts=ALLOWED) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


FOREIGN = [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_keyless_lane_refuses_what_another_page_sends(lane: httpx.Client, headers: dict[str, str]) -> None:
    simple = {"content-type": "text/plain", **headers}  # what a browser sends without asking first
    for method, path in (("POST", CHAT), ("POST", "/generate"), ("GET", "/v1/models"), ("DELETE", "/v1/requests/a")):
        answer = lane.request(method, path, headers=simple, content=b"{}")
        assert answer.status_code == 403, path
        assert "allowed_hosts" in answer.text or "cors_origins" in answer.text
    assert lane.get("/health", headers=headers).status_code == 200  # for whoever checks it, by any name
    assert lane.get("/ready", headers=headers).json() == {"ready": True}
    assert "models" in lane.get("/ready").json()


@pytest.mark.parametrize("headers", [{}, {"host": "localhost"}, {"host": "10.9.8.7:80"}, {"host": "gpu.house"}])
def test_a_keyless_lane_answers_its_own(lane: httpx.Client, headers: dict[str, str]) -> None:
    assert lane.post(CHAT, json=ECHO, headers=headers).status_code == 200


def test_with_keys_nothing_is_asked(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_lane(tmp_path_factory.mktemp("keys")) as url:
        for headers in FOREIGN:
            answer = httpx.post(f"{url}{CHAT}", json=ECHO, headers={**bearer("all"), **headers}, trust_env=False)
            assert answer.status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_the_metrics_are_as_closed(headers: dict[str, str]) -> None:
    config = MetricsConfig(keys={"environment": "NO_SUCH_KEYS"})
    transport = httpx.ASGITransport(create_metrics_app(Sidecar(config), Keyring(config.keys), ("prom.example",)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in ("/", "/summary"):
            assert (await client.get(path, headers=headers)).status_code == 403
            assert (await client.get(path, headers={"host": "prom.example"})).status_code == 200
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_the_playground_is_as_closed(tmp_path: Path, headers: dict[str, str]) -> None:
    keys = Keyring(KeysConfig(environment="NO_SUCH_KEYS"))
    door = Door(PlainTextResponse("the page"), keys, tmp_path, 1, ("page.example",))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
        for method, path in (("GET", "/"), ("POST", "/gradio_api/upload")):
            assert (await client.request(method, path, headers=headers)).status_code == 403
            assert (await client.request(method, path, headers={"host": "page.example"})).text == "the page"
            assert (await client.request(method, path)).text == "the page"


LENGTHS = [("4000000", 200), ("4000001", 413), ("", 413), ("9" * 5000, 413), ("1e3", 413)]


@pytest.mark.parametrize(("length", "status"), LENGTHS)
async def test_a_call_to_the_playground_is_bounded(tmp_path: Path, length: str, status: int) -> None:
    """Gradio parses it on its event loop."""
    door = Door(PlainTextResponse("the page"), Keyring(KeysConfig(environment="NO_SUCH_KEYS")), tmp_path, 1)
    headers = [(b"host", b"localhost"), *([(b"content-length", length.encode())] if length else [])]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": headers}
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        sent.append(message)

    await door(scope, receive, send)
    assert sent[0]["status"] == status


def test_a_host_that_is_none_is_refused_in_the_config() -> None:
    assert HttpConfig(allowed_hosts=("GPUbox", "*")).allowed_hosts == ("gpubox", "*")
    with pytest.raises(ValidationError, match="is no host"):
        HttpConfig(allowed_hosts=("http://gpubox",))


def test_up_allows_the_name_that_it_listens_on() -> None:
    apps: list[dict[str, Any]] = [
        {
            "name": "m",
            "import_path": "serve_app.app:build_model",
            "args": {"source": "x", "http": {"max_body_bytes": 1}},
        },
        {"name": "i", "import_path": "serve_app.app:build_ingress", "args": {"allowed_hosts": ["other"]}},
        {"name": "s", "import_path": "serve_app.app:build_metrics"},
        {"name": "p", "import_path": "serve_app.app:build_playground"},
        {"name": "else", "import_path": "their.app:build"},
    ]
    named: dict[str, Any] = {"http_options": {"host": "gpubox"}, "applications": apps}
    _allow_own_name(named)
    model, ingress, metrics, page, another = (app.get("args", {}) for app in named["applications"])
    assert model["http"] == {"max_body_bytes": 1, "allowed_hosts": ["gpubox"]}
    assert ingress["allowed_hosts"] == ["other", "gpubox"]
    assert metrics == page == {"allowed_hosts": ["gpubox"]}
    assert another == {}
    for host in ("127.0.0.1", "0.0.0.0", "localhost", "::1"):
        values: dict[str, Any] = {"http_options": {"host": host}, "applications": apps}
        _allow_own_name(values)
        assert values["applications"] == apps
