"""A small HTTP service that plays the API for the command line's tests: real sockets, scripted faults."""

import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests import own_answers

Fault = Callable[[str, int], Response | None]


class FakeApi:
    """Captions the text `x` with «caption of x». `fault` sees it and how often it came, and may answer instead."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.forms: list[dict[str, Any]] = []
        self.chats: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sees: Callable[[Request], None] = lambda request: None
        self.sees_image: Callable[[bytes], None] = lambda data: None
        self.delay_s = 0.0
        self.fault: Fault = lambda content, num_times: None
        self.chat_events: list[str] = []
        self.chat_delay_s = 0.0
        self.chat_answer: Callable[[str, int], Response] = lambda text, num_times: failure(
            500, "none", "not scripted"
        )
        self.num_hung_up = 0
        self.num_requests = 0
        self.num_at_once = self.most_at_once = 0
        self.whole_fault: Callable[[list[str]], Response | None] = lambda contents: None
        self.gets: dict[str, Response] = {"/v1/models": JSONResponse({"object": "list", "data": []})}

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/captions", self._caption, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/{path:path}", self._get),
            ]
        )

    async def _get(self, request: Request) -> Response:
        self.sees(request)
        return self.gets.get(request.url.path) or failure(404, "route_not_found", "no such route")

    async def _caption(self, request: Request) -> Response:
        self.sees(request)
        self.headers.append(dict(request.headers))
        if int(request.headers["content-length"]) > 5_000_000:
            return failure(413, "body_too_large", "too large: send less")
        if request.headers["content-type"] == "application/json":
            body = await request.json()
            contents = [body.pop("image")["url"]]
            self.forms.append(body)
        else:
            contents = await self._read_form(request)
        self.num_requests += 1
        if refusal := self.whole_fault(contents):
            return refusal
        self.seen.update(contents)
        self.num_at_once += len(contents)
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await asyncio.sleep(self.delay_s)
        self.num_at_once -= len(contents)
        answers = [
            self.fault(content, self.seen[content])
            or JSONResponse(own_answers.caption_answer(f"caption of {content}"))
            for content in contents
        ]
        failed = [answer for answer in answers if answer.status_code != 200]
        if len(failed) == len(answers) or len(contents) == 1:
            return answers[0]
        if whole := next((answer for answer in failed if not of_one_image(answer)), None):
            return whole
        return JSONResponse(own_answers.captions_answer([json.loads(bytes(answer.body)) for answer in answers]))

    async def _read_form(self, request: Request) -> list[str]:
        """The images' bytes as texts."""
        async with request.form() as form:
            uploads = [upload for upload in form.getlist("image") if isinstance(upload, UploadFile)]
            data = [await upload.read() for upload in uploads]
            self.forms.append({key: value for key, value in form.items() if isinstance(value, str)})
            if options := form.getlist("options"):
                self.forms[-1]["options"] = options
        for each in data:
            self.sees_image(each)
        return [each.decode(errors="replace") for each in data]

    async def _chat(self, request: Request) -> Response:
        self.sees(request)
        self.chats.append(body := await request.json())
        self.headers.append(dict(request.headers))
        if not body.get("stream"):
            text = body["messages"][-1]["content"]
            self.seen[text] += 1
            return self.chat_answer(text, self.seen[text])

        async def events() -> AsyncIterator[str]:
            try:
                for event in self.chat_events:
                    yield f"data: {event}\n\n"
                    await asyncio.sleep(self.chat_delay_s)
            except asyncio.CancelledError:
                self.num_hung_up += 1
                raise

        return StreamingResponse(events(), media_type="text/event-stream")


def of_one_image(fault: Response) -> bool:
    """Whether the real service would say so beside the other images' captions."""
    return fault.status_code not in (401, 403, 404, 405, 429, 503) and fault.media_type == "application/json"


def failure(status: int, code: str, message: str, param: str | None = None, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(own_answers.error(code, message, param, status), status, headers=named)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(api: FakeApi, port: int | None = None) -> Iterator[str]:
    """The address of `api` while it serves from a thread."""
    port = port or free_port()
    config = uvicorn.Config(
        api.app, port=port, log_level="critical", timeout_graceful_shutdown=1, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def wait_for(is_true: Callable[[], Any], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, "what the test waits for did not come"
        time.sleep(0.02)


def command(*arguments: str | bytes | Path, url: str) -> tuple[list[str | bytes], dict[str, str]]:
    """The command line and the environment of a `serve-app` process."""
    environment = {**os.environ, "SERVE_APP_URL": url, "COLUMNS": "200", "PYTHONPATH": os.getcwd()}
    words = [a if isinstance(a, bytes) else str(a) for a in arguments]
    return [sys.executable, "-m", "serve_app", *words], environment


def start(*arguments: str | bytes | Path, url: str, cwd: Path) -> "subprocess.Popen[bytes]":
    words, environment = command(*arguments, url=url)
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def run(
    *arguments: str | bytes | Path, url: str, cwd: Path, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    words, base = command(*arguments, url=url)
    return subprocess.run(
        words, env={**base, **environment}, cwd=cwd, input=stdin, capture_output=True, timeout=60, check=False
    )


NUM_IMAGES = 60
EXPECTED = Counter((f"in/{index:03}.jpg", f"caption of p{index}") for index in range(NUM_IMAGES))


def captions(folder: Path, output: str) -> Counter[tuple[str, str]]:
    """How often each file and caption stands in the output."""
    if output == "txt":
        texts = ((str(path.with_suffix(".jpg")), path.read_text().strip()) for path in (folder / "in").glob("*.txt"))
        return Counter((os.path.relpath(name, folder), text) for name, text in texts)
    with open(folder / output, newline="") as file:
        if output.endswith(".csv"):
            return Counter((row["file"], row["caption"]) for row in csv.DictReader(file))
        return Counter((row["file"], row["caption"]) for row in map(json.loads, file))
