"""`serve-app key`, and the key that client commands send: where it comes from, and what its refusal says."""

import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.responses import Response

from serve_app.access.key_file import KeyEntry, parse_keys
from serve_app.access.keys import Keyring, sha256_of
from serve_app.cli.errors import CliError
from serve_app.cli.up import _add_playground, _next_steps, _playground_url, _refuse_open_door, _wants_key
from serve_app.config.http import KeysConfig
from tests.cli_fake import FakeApi, failure, run, serving, start
from tests.own_answers import chat_event

pytestmark = pytest.mark.engine

UP = sys.modules[_add_playground.__module__]  # its name is a command's as well
NOWHERE = "http://127.0.0.1:9"  # what makes keys asks no service
SECRET = "sa-TheKeyThatNobodyMaySee"


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.chat_events = [chat_event("Hello"), chat_event("", "stop"), "[DONE]"]
    return api


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with serving(api) as url:
        yield url


def key(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return run("key", *arguments, url=NOWHERE, cwd=folder)


def entries(path: Path) -> list[KeyEntry]:
    return list(parse_keys(path.read_bytes()))


def test_the_key_stands_alone_on_stdout_and_its_entry_on_stderr(tmp_path: Path) -> None:
    done = key(tmp_path, "alice")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"sa-[A-Za-z0-9_-]{43}\n", made := done.stdout.decode())
    assert parse_keys(b"keys:\n" + done.stderr) == (KeyEntry(name="alice", sha256=sha256_of(made.strip())),)
    assert made.strip() not in done.stderr.decode()
    assert key(tmp_path, "alice").stdout != done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_option_stands_in_the_entry(tmp_path: Path) -> None:
    done = key(tmp_path, "bob", "--models", "a, org/b,", "--requests-per-minute", "60", "--tokens-per-minute", "9000",
               "--images-per-minute", "30", "--priority", "0", "--admin")  # fmt: skip
    assert parse_keys(b"keys:\n" + done.stderr) == (
        KeyEntry(
            name="bob", sha256=sha256_of(done.stdout.decode().strip()), models=("a", "org/b"), requests_per_minute=60,
            tokens_per_minute=9000, images_per_minute=30, priority=0, admin=True,
        ),
    )  # fmt: skip


def test_a_file_is_made_for_its_owner_alone_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    first, second = key(tmp_path, "alice", "--file", "keys.yaml"), key(tmp_path, "bob", "--file", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in entries(path)] == ["alice", "bob"]
    assert list(tmp_path.iterdir()) == [path]
    keys = Keyring(KeysConfig(file=str(path), environment="NOT_SET"))
    for done, name in ((first, "alice"), (second, "bob")):
        made = done.stdout.decode().strip()
        assert (found := keys.key_of(f"Bearer {made}"))
        assert found.name == name
        assert made not in path.read_text() + done.stderr.decode()


def test_what_stands_in_the_file_stays(tmp_path: Path) -> None:
    path, link = tmp_path / "real.yaml", tmp_path / "keys.yaml"
    text = f"# our keys\nkeys:\n  - name: alice  # of the first floor\n    sha256: {'a' * 64}\n"
    path.write_text(text)
    path.chmod(0o640)
    link.symlink_to(path)
    assert key(tmp_path, "bob", "--file", "keys.yaml").returncode == 0
    assert path.read_text().startswith(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert [entry.name for entry in entries(path)] == ["alice", "bob"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["alice"], "keys.yaml: the name 'alice' is taken: choose another"),
        (["a b"], "NAME: "),
        (["x", "--models", "*"], "--models: "),
        (["x", "--models", ","], "--models: "),
        (["x", "--priority", "10"], "--priority"),
        (["x", "--requests-per-minute", "0"], "--requests-per-minute"),
        (["x", "--file", "broken.yaml"], "this isn't valid YAML"),
        (["x", "--file", "none/keys.yaml"], "none/keys.yaml can't be written (No such file or directory)"),
        (["x", "--file", "."], "can't be written (Is a directory)"),
    ],
)
def test_mistakes_make_no_key(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text := f"keys: [{{name: alice, sha256: {'a' * 64}}}]\n")
    (tmp_path / "broken.yaml").write_text("keys: [")
    arguments = arguments if "--file" in arguments else [*arguments, "--file", "keys.yaml"]
    done = key(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert sentence in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert path.read_text() == text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.yaml", "keys.yaml"]


def test_several_at_once_lose_no_entry(tmp_path: Path) -> None:
    made = [start("key", f"n{n}", "--file", "keys.yaml", url=NOWHERE, cwd=tmp_path) for n in range(4)]
    for process in made:
        process.communicate(timeout=60)
    assert sorted(entry.name for entry in entries(tmp_path / "keys.yaml")) == ["n0", "n1", "n2", "n3"]


@pytest.mark.parametrize("is_option", [True, False])
@pytest.mark.parametrize("arguments", [["chat", "hi"], ["caption", "a.jpg"], ["models"], ["status"]])
def test_every_command_sends_the_key(
    api: FakeApi, url: str, tmp_path: Path, arguments: list[str], is_option: bool
) -> None:
    (tmp_path / "a.jpg").write_text("a")
    for path in ("/v1/models", "/health", "/ready", "/metrics/summary"):
        api.gets[path] = failure(401, "invalid_api_key", "not so")
    given = [*arguments, "--api-key", SECRET] if is_option else arguments
    variable = "sa-other" if is_option else f" {SECRET}\n"
    seen: list[str | None] = []
    api.sees = lambda request: seen.append(request.headers.get("authorization"))
    done = run(*given, url=url, cwd=tmp_path, SERVE_APP_API_KEY=variable)
    assert set(seen) == {f"Bearer {SECRET}"}
    assert SECRET.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["chat", "caption", "models", "status"])
def test_help_names_the_variable_and_not_its_value(tmp_path: Path, command: str) -> None:
    text = run(command, "--help", url=NOWHERE, cwd=tmp_path, SERVE_APP_API_KEY=SECRET).stdout.decode()
    assert "--api-key" in text
    assert "SERVE_APP_API_KEY" in text
    assert SECRET not in text


@pytest.mark.parametrize("value", [f"{SECRET}\nx", f"{SECRET}é", f"{SECRET}\x7f", f"a\u2028{SECRET}"])
def test_a_key_that_no_header_can_carry(tmp_path: Path, value: str) -> None:
    done = run("models", "--api-key", value, url=NOWHERE, cwd=tmp_path)
    assert done.returncode == 2
    assert "set --api-key or SERVE_APP_API_KEY again" in done.stderr.decode()
    assert SECRET.encode() not in done.stderr


REFUSALS = {
    "missing": (failure(401, "invalid_api_key", "none came: send one"), None,
                "none came: send one (no API key was sent: pass one with --api-key or SERVE_APP_API_KEY)", 2),
    "wrong": (failure(401, "invalid_api_key", "isn't known"), "k",
              "isn't known (the API key comes from --api-key or SERVE_APP_API_KEY)", 2),
    "forbidden": (failure(403, "forbidden", "this key may not use 'm'"), "k",
                  "this key may not use 'm' (the API key comes from --api-key or SERVE_APP_API_KEY)", 2),
    "too fast": (failure(429, "rate_limit_exceeded", "9 requests a minute: try again in 2.0 s", retry_after="2"), "k",
                 "serve-app: 9 requests a minute: try again in 2.0 s\n", 1),
    "another server": (Response("no", 401), None, "/v1/models answered 401 Unauthorized: no (no API key was sent", 2),
    "another's limit": (Response("slow", 429, headers={"retry-after": "7"}), None,
                        "answered 429 Too Many Requests: slow (try again in 7 s)", 1),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "sent", "sentence", "code"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_a_sentence(
    api: FakeApi, url: str, tmp_path: Path, answer: Response, sent: str | None, sentence: str, code: int
) -> None:
    api.gets["/v1/models"] = answer
    done = run("models", url=url, cwd=tmp_path, SERVE_APP_API_KEY=sent or "")
    assert done.returncode == code
    assert sentence in done.stderr.decode()
    (tmp_path / "a.jpg").write_text("a")
    if code == 2:  # a run ends before the first image
        done = run("caption", "a.jpg", url=url, cwd=tmp_path, SERVE_APP_API_KEY=sent or "")
        assert (done.returncode, api.seen) == (2, {})
        assert sentence in done.stderr.decode()


def test_captions_wait_as_long_as_the_limit_says(api: FakeApi, url: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("a")
    refusal = failure(429, "rate_limit_exceeded", "the limit is reached: try again in 0.6 s", retry_after="1")
    times: list[float] = []

    def fault(_: str, num_times: int) -> Response | None:
        times.append(time.monotonic())
        return refusal if num_times < 3 else None

    api.fault = fault
    done = run("caption", "a.jpg", url=url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"caption of a\n")
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))


@pytest.mark.parametrize("status", [401, 403])
def test_a_run_whose_key_is_taken_away_ends(api: FakeApi, url: str, tmp_path: Path, status: int) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_text(name)
    api.fault = lambda content, _: None if content == "a" else failure(status, "x", "not any more")
    done = run("caption", ".", "-o", "o.jsonl", "--concurrency", "1", url=url, cwd=tmp_path, SERVE_APP_API_KEY="k")
    assert done.returncode == 2
    assert "not any more (the API key comes from" in done.stderr.decode()
    assert (tmp_path / "o.jsonl").read_text().count("\n") == 1


def test_status_without_the_right_to_read_numbers(api: FakeApi, url: str, tmp_path: Path) -> None:
    for path in ("/health", "/ready"):
        api.gets[path] = Response("{}")
    api.gets["/metrics/summary"] = failure(403, "forbidden", "an admin's key reads the numbers")
    done = run("status", url=url, cwd=tmp_path, SERVE_APP_API_KEY="k")
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 0
    assert "No numbers: an admin's key reads the numbers (the API key comes from" in text
    api.gets["/v1/models"] = failure(401, "invalid_api_key", "isn't known")
    done = run("status", url=url, cwd=tmp_path, SERVE_APP_API_KEY="k")
    assert done.returncode == 2
    assert "isn't known" in done.stderr.decode()


def test_what_up_suggests_sends_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVE_APP_API_KEYS", raising=False)
    text = "applications: [{name: i, import_path: 'serve_app.app:build_ingress', args: {keys: {file: k.yaml}}}]"
    closed = yaml.safe_load(text)
    open_too = yaml.safe_load(text.replace(", args: {keys: {file: k.yaml}}", ""))
    assert (_wants_key(closed), _wants_key(open_too)) == (True, False)
    monkeypatch.setenv("SERVE_APP_API_KEYS", "k")
    assert _wants_key(open_too)
    header = '-H "authorization: Bearer $SERVE_APP_API_KEY"'
    assert _next_steps(["m"], "http://h", None, None, True).count(header) == 2
    assert header not in _next_steps(["m"], "http://h", None, None, False)


def test_the_session_does_not_show_the_key() -> None:
    from serve_app.cli.captioning.inputs.walk import Inputs
    from serve_app.cli.captioning.outputs.rows import CaptionSettings
    from serve_app.cli.captioning.outputs.target import Target
    from serve_app.cli.captioning.request import CaptionRequest
    from serve_app.cli.captioning.session import Session

    session = Session(
        url="u", api_key=SECRET, inputs=Inputs(), request=CaptionRequest(CaptionSettings()), target=Target(),
        concurrency=1, limit=None, patience_s=1,
    )  # fmt: skip
    assert SECRET not in repr(session)


@pytest.mark.parametrize(
    ("host", "has_key", "flags", "is_refused"),
    [
        ("127.0.0.1", False, [], False),
        ("::1", False, [], False),
        ("localhost", False, [], False),
        ("0.0.0.0", False, [], True),
        ("::", False, [], True),
        ("10.1.2.3", False, [], True),
        ("node-1", False, [], True),
        ("0.0.0.0", True, [], False),
        ("0.0.0.0", False, ["--no-auth"], False),
    ],
)
def test_up_listens_to_others_only_with_keys_or_where_told_to(
    host: str, has_key: bool, flags: list[str], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVE_APP_API_KEYS", raising=False)
    values = {"http_options": {"host": host}, "applications": []}
    if is_refused:
        with pytest.raises(CliError, match="--no-auth"):
            _refuse_open_door(values, has_key, no_auth=bool(flags))
    else:
        _refuse_open_door(values, has_key, no_auth=bool(flags))


def test_up_refuses_the_production_example_without_keys(tmp_path: Path) -> None:
    done = run("up", str(Path(__file__).parent.parent.parent / "serve_config.yaml"), url=NOWHERE, cwd=tmp_path)
    assert done.returncode == 2
    assert b"serve-app key" in done.stderr
    assert b"0.0.0.0" in done.stderr


def test_the_playground_stands_behind_the_ingresss_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UP, "find_spec", lambda name: object())
    ingress = {"name": "ingress", "import_path": "serve_app.app:build_ingress", "args": {"keys": {"file": "/k.yaml"}}}
    values: dict[str, Any] = {"applications": [ingress]}
    _add_playground(values)
    _add_playground(values)
    _, page = values["applications"]
    assert page["args"] == {"keys": {"file": "/k.yaml"}}
    assert _playground_url(values, "http://h") == "http://h/playground"
    assert _playground_url(values, "http://h", {"playground": "it failed"}) is None
    assert _playground_url({"applications": [page | {"route_prefix": None}]}, "http://h") is None
    with pytest.raises(CliError, match="another application"):
        _add_playground({"applications": [ingress, {"name": "playground", "import_path": "mine:app"}]})
    with pytest.raises(CliError, match="the file has none"):
        _add_playground({"applications": []})


def test_without_gradio_the_playground_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UP, "find_spec", lambda name: None)
    with pytest.raises(CliError, match=r"pip install 'serve-app\[playground\]'"):
        _add_playground({"applications": []})
