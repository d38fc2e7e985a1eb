"""`serve-app chat`: one answer, a pipe, a conversation on a terminal, and answers that break off."""

import base64
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_fake import FakeApi, command, run, serving, start, wait_for
from tests.own_answers import chat_event, error

HELLO = [chat_event("Hel"), chat_event("lo\u2028"), chat_event("", "stop"), "[DONE]"]


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.chat_events = HELLO
    return api


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with serving(api) as url:
        yield url


def test_a_message_is_answered(api: FakeApi, url: str, tmp_path: Path) -> None:
    (tmp_path / "cat.PNG").write_bytes(b"png")
    done = run("chat", "What?", "--image", "cat.PNG", "--image", "http://x/y.jpg", "--system", "Be brief.",
               "--max-tokens", "9", url=url, cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stdout.decode()) == (0, "Hello\u2028\n"), done.stderr
    data = base64.b64encode(b"png").decode()
    assert api.chats == [{
        "max_tokens": 9, "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "image_url", "image_url": {"url": "http://x/y.jpg"}},
                {"type": "text", "text": "What?"},
            ]},
        ],
    }]  # fmt: skip


def test_a_pipe_is_one_message(api: FakeApi, url: str, tmp_path: Path) -> None:
    assert run("chat", url=url, cwd=tmp_path, stdin=b"hi\nthere \xff\n").returncode == 0
    assert api.chats[0]["messages"] == [{"role": "user", "content": "hi\nthere �"}]
    assert run("chat", url=url, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ([chat_event("Hel"), json.dumps(error("replica_died", "the replica died"))], "the replica died"),
        ([chat_event("Hel")], "broke off before its end"),
        ([chat_event("Hel"), "not json"], "isn't one of a chat"),
    ],
)
def test_a_broken_answer_is_an_error(api: FakeApi, url: str, tmp_path: Path, sent: list[str], sentence: str) -> None:
    api.chat_events = sent
    done = run("chat", "hi", url=url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"Hel\n")
    assert sentence in done.stderr.decode()


def test_ctrl_c_hangs_up(api: FakeApi, url: str, tmp_path: Path) -> None:
    api.chat_events, api.chat_delay_s = HELLO[:1] * 1000, 0.2
    process = start("chat", "hi", url=url, cwd=tmp_path)
    assert process.stdout
    assert process.stdout.read(3) == b"Hel"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_for(lambda: api.num_hung_up == 1)


def test_a_conversation(api: FakeApi, url: str, tmp_path: Path) -> None:
    """On a real terminal: history, commands, Ctrl-C that stops one answer, Ctrl-D that ends."""
    words, environment = command("chat", url=url)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        words, env=environment, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )  # fmt: skip
    os.close(terminal)
    screen = b""

    def expect(text: bytes) -> None:
        nonlocal screen
        while text not in screen:
            screen += os.read(controller, 4096)
        screen = screen.partition(text)[2]

    def type_line(line: bytes) -> None:
        expect(b"> ")
        os.write(controller, line + b"\n")

    type_line(b"one")
    expect(b"Hello")
    type_line(b"/model other")
    type_line(b"/image missing.jpg")
    expect(b"can't be read")
    type_line(b"two")
    expect(b"Hello")
    assert [m["content"].strip("\u2028") for m in api.chats[1]["messages"]] == ["one", "Hello", "two"]
    assert api.chats[1]["model"] == "other"
    api.chat_events, api.chat_delay_s = [chat_event("x\x1b[2J")] * 1000, 0.1
    type_line(b"/new")
    type_line(b"three")
    expect("x�[2J".encode())
    os.write(controller, b"\x03")
    expect(b"(stopped)")
    assert [m["content"] for m in api.chats[2]["messages"]] == ["three"]
    expect(b"> ")
    os.write(controller, b"\x04")
    assert process.wait(10) == 0
    wait_for(lambda: api.num_hung_up == 1)
    os.close(controller)


def test_another_server_is_named_with_the_fix(url: str, tmp_path: Path) -> None:
    done = run("chat", "hi", url=f"{url}/elsewhere/v1/", cwd=tmp_path)
    assert done.returncode == 2
    assert b"/elsewhere/v1/chat/completions answered 405 Method Not Allowed: is --url the address" in done.stderr
