"""HAProxy chooses the lane by the model's name: what is told by a request's head or first bytes, and what isn't."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve_app.exchange.lane_secret import DRAWN_HEADER, LANES_PATH, SECRET_HEADER, SECRET_VARIABLE
from serve_app.haproxy.rules import BODY_PATHS, HEAD_PATHS, UnusableConfiguration, with_lanes
from serve_app.ingress.routes import ROUTES
from tests.haproxy.front import Front, started

pytestmark = pytest.mark.engine

MODELS = {"demo": "/models/demo", "other/one": "/models/other", "rest": "/rest"}
TABLE = "".join(
    f"{task}\t{line}\n"
    for task in ("chat", "caption")
    for line in (
        "demo\t= 1 http-demo affinity", "lora\t= 1 http-demo affinity",
        "other/one\t= 1 http-other.one affinity", "gone\t= 1 http-gone affinity",
        "prod\tdemo 90 http-demo affinity\tother/one 10 http-other.one power_of_two",
        "half\tdemo 1 http-demo affinity\tfar 1 - -",
    )
)  # fmt: skip
CHAT = "/v1/chat/completions"
CAPTIONS = "/v1/captions"


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with started(MODELS) as running:
        running.show(TABLE)
        yield running


def asked(front: Front, path: str = CHAT, **request: Any) -> dict[str, Any]:
    return front.asked(path, **request)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/captions"])
@pytest.mark.parametrize(
    ("name", "prefix"), [("demo", "/models/demo"), ("lora", "/models/demo"), ("other/one", "/models/other")]
)
def test_a_name_in_the_body_leads_to_its_lane(front: Front, path: str, name: str, prefix: str) -> None:
    told = asked(front, path, json={"model": name, "messages": []})
    assert told["path"] == prefix + path
    assert DRAWN_HEADER not in told["headers"]


@pytest.mark.parametrize("num_bytes", [10, 1_000_000])
def test_a_form_that_names_the_model_leads_to_its_lane(front: Front, num_bytes: int) -> None:
    """Clients write a field's head in their own ways: httpx, then aiohttp, then one that quotes nothing else."""
    files = {"image": ("a.jpg", bytes(num_bytes), "image/jpeg")}
    assert (
        asked(front, CAPTIONS, data={"model": "lora", "style": "tags"}, files=files)["path"]
        == f"/models/demo{CAPTIONS}"
    )
    kept = 'content-disposition: form-data; name="model"\r\ncontent-type: text/plain; charset=utf-8'
    for head in (kept, 'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"'):
        body = f"--b\r\n{head}\r\n\r\nother/one\r\n".encode() + image_part(bytes(num_bytes))
        told = asked(front, CAPTIONS, content=body, headers={"content-type": "Multipart/Form-Data; boundary=b"})
        assert (told["path"], told["num_bytes"]) == (f"/models/other{CAPTIONS}", len(body))


def image_part(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        image_part(b"x" * 5000),
        image_part(b"x" * 5000).removesuffix(b"--\r\n")
        + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\ndemo\r\n--b--',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"x" * 3000,
        b'--b\r\nContent-Disposition: form-data; name="model"',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nnobody\r\n--b--',
        b'name="model"\r\n\r\ndemo\r\n',
        b"",
        b"\0" * 3000,
    ],
)
def test_a_form_that_names_none_in_its_beginning_goes_to_the_ingress(front: Front, body: bytes) -> None:
    told = asked(front, CAPTIONS, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert (told["path"], told["num_bytes"]) == (CAPTIONS, len(body))


@pytest.mark.parametrize(
    "content",
    [
        b'{"messages": [{"role": "user", "content": "\\"model\\": \\"demo\\""}]}',
        b'{"messages": [], "x": {"model": "demo"}}',
        b'[{"model": "demo"}]', b'{"model": null}', b'{"model": 5}', b'{"model": ["demo"]}', b'{"model": ""}',
        b'{"model": "Demo"}', b'{"model": "demo "}', b'{"model": "nobody"}', b'{"model": "../demo"}',
        b'{"model": "demo\\tx"}', b'{"model": "gone"}', b"", b"{", b"model=demo", b"\xff\xfe{",
        json.dumps({"messages": "x" * 100_000, "model": "demo"}).encode(),
    ],
)  # fmt: skip
def test_what_names_no_model_with_a_lane_goes_to_the_ingress(front: Front, content: bytes) -> None:
    told = asked(front, content=content, headers={"content-type": "application/json"})
    assert (told["by"], told["path"], told["num_bytes"]) == ("ingress", CHAT, len(content))


@pytest.mark.parametrize("num_before", [0, 1_000, 3_000, 20_000, 60_000])
def test_the_name_may_stand_in_the_first_64_kb_of_a_body_of_megabytes(front: Front, num_before: int) -> None:
    body = {"messages": "x" * num_before, "model": "demo", "more": "y" * 3_000_000}
    content = json.dumps(body).encode()
    assert asked(front, content=content) | {"headers": None} == {
        "by": "demo", "path": "/models/demo" + CHAT, "headers": None, "num_bytes": len(content),
    }  # fmt: skip


def test_chunks_and_an_expected_100_are_read(front: Front) -> None:
    pieces = [b'{"mod', b'el": "de', b'mo", "messages": []}']
    assert asked(front, content=iter(pieces))["by"] == "demo"
    with socket.create_connection(("127.0.0.1", front.port), 20) as connection:
        body = b'{"model": "demo"}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert b'"by": "demo"' in connection.recv(10_000)


@pytest.mark.parametrize(
    "path", ["/", "/generate", "/generate_stream", "/invocations", "/tokenize", "/chat_tokenize"]
)
def test_the_head_names_the_model_where_the_body_does_not(front: Front, path: str) -> None:
    assert asked(front, path, json={"inputs": "x"}, headers={"X-Model": "demo"})["by"] == "demo"
    assert asked(front, f"{path}?model=other/one", json={"inputs": "x"})["by"] == "other/one"
    assert asked(front, f"{path}?a=1&model=other%2Fone", json={"inputs": "x"})["by"] == "other/one"
    assert asked(front, path, json={"model": "demo", "inputs": "x"})["by"] == "ingress"


def test_what_is_no_post_at_these_paths_is_left_alone(front: Front) -> None:
    for path in (
        "/v1/models",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/metrics",
        "/models/demo/v1/models",
    ):
        told = asked(front, path, json={"model": "demo"})
        assert told["by"] == ("demo" if path.startswith("/models/demo") else "ingress")
        assert told["path"] == path
    with front.client as client:
        assert client.get("/generate", headers={"X-Model": "demo"}).json()["by"] == "ingress"


def test_an_alias_is_drawn_by_weight_and_its_model_told(front: Front) -> None:
    with front.client as client:
        told = [client.post(CHAT, json={"model": "prod"}).json() for _ in range(10_000)]
        others = [client.post(CHAT, json={"model": "half"}).json() for _ in range(200)]
    counts = Counter(one["by"] for one in told)
    assert counts.keys() == {"demo", "other/one"}
    assert abs(counts["demo"] / 10_000 - 0.9) < 0.015  # five standard deviations
    assert {(one["by"], one["headers"][DRAWN_HEADER].partition(" ")[2]) for one in told} == {
        ("demo", "prod demo"), ("other/one", "prod other/one"),
    }  # fmt: skip
    # a model without a lane is the ingress's, which is told what was drawn
    assert {(one["by"], one["headers"][DRAWN_HEADER].partition(" ")[2]) for one in others} == {
        ("demo", "half demo"), ("ingress", "half far"),
    }  # fmt: skip


def test_our_own_headers_are_taken_out_of_a_clients_request(front: Front) -> None:
    forged = [
        (DRAWN_HEADER, "prod other/one"),
        (DRAWN_HEADER.upper(), "x y"),
        (SECRET_HEADER, "1"),
        (SECRET_HEADER, "2"),
    ]
    for path in (CHAT, LANES_PATH, "/models/demo/v1/chat/completions", "/-//lanes"):
        told = asked(front, path, json={"model": "demo"}, headers=forged)
        assert not {DRAWN_HEADER, SECRET_HEADER} & told["headers"].keys()


def test_a_new_table_holds_at_once_and_a_missing_one_changes_nothing(front: Front) -> None:
    front.show("chat\tnew\t= 1 http-demo affinity\n")
    assert asked(front, json={"model": "new"})["by"] == "demo"
    assert asked(front, json={"model": "other/one"})["by"] == "ingress"
    front.show(TABLE)
    assert asked(front, json={"model": "other/one"})["by"] == "other/one"


@pytest.mark.slow
def test_a_slow_body_is_told_in_the_apis_shape_and_holds_nobody_up(front: Front) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", front.port), 90)) for _ in range(2)]
        for slow, path in zip(connections, (CHAT, "/generate"), strict=True):
            slow.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert asked(front, json={"model": "demo"})["by"] == "demo"
        answers = [slow.recv(10_000).partition(b"\r\n\r\n") for slow in connections]
    for head, _, _ in answers:
        assert head.startswith(b"HTTP/1.1 408")
        assert b"application/json" in head.lower()
    chat, generate = (json.loads(body) for _, _, body in answers)
    assert chat["error"]["code"] == "body_too_slow"
    assert generate == {"error": chat["error"]["message"], "error_type": "body_too_slow"}


@pytest.mark.parametrize("num_more", [0, 30_000, 1_000_000])
@pytest.mark.parametrize(("name", "server"), [("demo", "demo"), ("nobody", "ingress")])
@pytest.mark.parametrize("path", [CHAT, "/generate"])
def test_a_client_that_leaves_before_the_answer_is_noticed(
    front: Front, path: str, name: str, server: str, num_more: int
) -> None:
    """Also where its body came later than its head, as from Python's httpx."""
    backend = front.ingress if server == "ingress" else front.models[server]
    backend.left.clear()
    body = {"model": name, "more": "x" * num_more}
    with front.client as client, pytest.raises(httpx.ReadTimeout):
        client.post(path, json=body, headers={"x-hold": "1", "x-model": name}, timeout=0.5)
    assert backend.left.wait(10)


def test_every_route_that_works_for_a_model_is_looked_at() -> None:
    assert {*BODY_PATHS, *HEAD_PATHS} == {route.path for route in ROUTES if route.is_counted}


def test_a_configuration_that_is_not_known_is_left_as_it_is() -> None:
    for config in ("", "global\n", "frontend http_frontend\n    bind *:8000\n"):
        with pytest.raises(UnusableConfiguration):
            with_lanes(config, "lanes.lua", "secret")


@pytest.mark.slow
def test_thousands_of_slow_bodies_take_bounded_memory_and_hold_nobody_up(front: Front) -> None:
    """3,000 clients, each of which sends 3 kB of a body that names no model, and then waits."""
    haproxy = psutil.Process(front.process.pid)
    before, part = haproxy.memory_info().rss, b'{"messages": "' + b"x" * 3_000
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(3_000):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", front.port), 20))
            slow.sendall(head + part)
        for _ in range(20):
            assert asked(front, json={"model": "demo"})["by"] == "demo"
        grown = haproxy.memory_info().rss - before
    print(f"{grown / 3_000:.0f} bytes for each of them")
    assert grown < 3_000 * 2 * 65_536


def test_switched_off_it_is_ray_serves_configuration() -> None:
    with started({"demo": "/models/demo"}, {"SERVE_APP_HAPROXY_LANES": "0"}) as front:
        assert asked(front, json={"model": "demo"})["by"] == "ingress"
        assert "lua" not in front.config.read_text()
        assert not front.ingress.secrets


def test_without_a_secret_every_request_goes_to_the_ingress_and_the_log_says_why(tmp_path: Path) -> None:
    nothing = {SECRET_VARIABLE: "", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}
    with started({"demo": "/models/demo"}, nothing) as front:
        assert asked(front, json={"model": "demo"})["by"] == "ingress"
        assert f"set {SECRET_VARIABLE} where Ray starts" in front.stderr.read_text()


def test_a_model_whose_replica_is_gone_is_the_ingresss() -> None:
    with started({"demo": "/models/demo"}) as other:
        other.show("chat\tdemo\t= 1 http-demo affinity\n")
        assert asked(other, json={"model": "demo"})["by"] == "demo"
        other.models["demo"].is_healthy = False
        deadline = time.monotonic() + 60
        while asked(other, json={"model": "demo"})["path"] != CHAT:
            assert time.monotonic() < deadline, "HAProxy never saw that its health checks fail"
            time.sleep(0.2)
