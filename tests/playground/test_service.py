"""The playground's client of the service: what it says of an answer that has no end."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serve_app.playground.service import Answer, Refused, Service


class Endless(BaseHTTPRequestHandler):
    """Answers with one piece and `[DONE]`, without a finish reason or a whole caption."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        is_chat = self.path.endswith("completions")
        piece = (
            '{"choices": [{"delta": {"content": "a"}}]}' if is_chat else '{"object": "caption.chunk", "delta": "a"}'
        )
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {piece}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is written."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("task", ["chat", "caption"])
async def test_an_answer_without_an_end_is_refused(url: str, task: str) -> None:
    service = Service(url)
    stream = service.chat([], {}, None) if task == "chat" else service.caption("http://a.example/a.png", {}, None)
    first, *_ = [await anext(stream) for _ in range(1 if task == "caption" else 2)]
    assert first == Answer("a")
    with pytest.raises(Refused, match="broke off before its end: try again"):
        await anext(stream)
    await service.close()
