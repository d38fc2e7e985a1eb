"""Our client, for what the public one can't do: uploads, captions, answers that come whole, loads side by side.

It counts as `vllm bench serve` does, which one workload shows by running both: an event with choices is a token's,
and the answer's length is what the server says in `usage`. One process, one connection for each client.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.serving.images import ImageShelf
from benchmarks.serving.timing import Request
from benchmarks.serving.workloads import ImageKind, Load

CAPTION_PROMPT = "Write a short caption for this picture."  # the one that the demo model was trained on
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to send: its body is made before the clock runs."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    num_wanted: int | None


class Calls:
    """Makes the requests of a load, each different from the last, for one system."""

    def __init__(
        self, load: Load, address: str, prompts: Sequence[str], images: ImageShelf | None, *,
        takes_vllm_fields: bool = True, key: str | None = None,
    ) -> None:  # fmt: skip
        self._load, self._address = load, address
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._prompts, self._images = prompts, images
        self._takes_vllm_fields = takes_vllm_fields

    def take(self, num_requests: int) -> list[Call]:
        return [self._call(number) for number in range(num_requests)]

    def _call(self, number: int) -> Call:
        image = self._load.image
        if image is None:
            return self._chat(self._prompts[number % len(self._prompts)], self._load.num_tokens)
        assert self._images is not None, "a load with images needs a shelf"
        if image.way == "upload":
            return self._upload(self._images.read(image.size, number))
        part = {"type": "image_url", "image_url": {"url": self._image_url(image, number)}}
        return self._chat([part, {"type": "text", "text": CAPTION_PROMPT}], None)

    def _image_url(self, kind: ImageKind, number: int) -> str:
        assert self._images is not None, "a load with images needs a shelf"
        if kind.way == "url":
            return self._images.url_of(kind.size, number)
        return f"data:image/jpeg;base64,{base64.b64encode(self._images.read(kind.size, number)).decode()}"

    def _chat(self, content: str | list[dict[str, Any]], num_wanted: int | None) -> Call:
        """`num_wanted` None: as many tokens as the model likes, up to the load's."""
        body: dict[str, Any] = {
            "model": self._load.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._load.num_tokens,
            "temperature": 0,
            "stream": self._load.is_streamed,
        }
        if self._takes_vllm_fields:
            body |= {"ignore_eos": True} if num_wanted is not None else {}
            body |= {"stream_options": {"include_usage": True}} if self._load.is_streamed else {}
        headers = {"content-type": "application/json", **self._headers}
        return Call(f"{self._address}/v1/chat/completions", json.dumps(body).encode(), headers, num_wanted)

    def _upload(self, image: bytes) -> Call:
        boundary = "serving-bench"
        fields = {"model": self._load.model, "max_tokens": str(self._load.num_tokens)}
        head = "".join(
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        file = f'--{boundary}\r\ncontent-disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        body = (head + file).encode() + image + f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}", **self._headers}
        return Call(f"{self._address}/v1/captions", body, headers, None)


async def run_closed(calls: Sequence[Call], num_clients: int) -> list[Request]:
    """By so many clients, each sending its next request when its last is answered; in the order of the calls."""
    waiting = iter(enumerate(calls))
    done: dict[int, Request] = {}

    async def ask(session: aiohttp.ClientSession) -> None:
        for number, call in waiting:
            done[number] = await _send(session, call)

    async with _session(num_clients) as session:
        await asyncio.gather(*(ask(session) for _ in range(num_clients)))
    return [done[number] for number in range(len(calls))]


async def run_open(calls: Sequence[Call], rate_per_s: float) -> list[Request]:
    """As they come, so many a second on average (Poisson), whoever still waits; in the order of the calls."""
    gaps, tasks = random.Random(0), []
    async with _session(0) as session:
        due_s = time.perf_counter()
        for call in calls:
            due_s += gaps.expovariate(rate_per_s)
            await asyncio.sleep(due_s - time.perf_counter())
            tasks.append(asyncio.create_task(_send(session, call)))
        return list(await asyncio.gather(*tasks))


def _session(num_clients: int) -> aiohttp.ClientSession:
    """With a connection for each client; 0 is as many as there are requests."""
    connector = aiohttp.TCPConnector(limit=num_clients)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))


async def _send(session: aiohttp.ClientSession, call: Call) -> Request:
    answer = _Answer()
    begun_s = time.perf_counter()
    try:
        async with session.post(call.url, data=call.body, headers=call.headers) as response:
            if response.status != 200:
                answer.error = f"HTTP {response.status}: {(await response.text())[:200]}"
            elif response.content_type == "text/event-stream":
                async for data in _events(response.content.iter_any()):
                    answer.event(data)
            else:
                answer.whole(await response.json())
    except Exception as exc:  # noqa: BLE001 - the record of one request: whatever happened is its failure
        answer.error = f"{type(exc).__name__}: {exc}"
    return answer.request(begun_s, call.num_wanted)


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event, also where one comes in several pieces."""
    rest = b""
    async for piece in pieces:
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            data = event.strip().removeprefix(b"data:").strip()
            if data and not event.startswith(b":"):
                yield data.decode()


class _Answer:
    """What came of one answer so far."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._event_times_s: list[float] = []
        self._texts: list[str] = []
        self._num_tokens = 0

    def event(self, data: str) -> None:
        if data == "[DONE]":
            return
        now_s = time.perf_counter()
        values = json.loads(data)
        if "error" in values:
            self.error = f"an error event: {str(values['error'])[:200]}"
        if values.get("choices"):
            self._event_times_s.append(now_s)
            self._texts.append(values["choices"][0]["delta"].get("content") or "")
        if values.get("usage"):
            self._num_tokens = values["usage"]["completion_tokens"]

    def whole(self, values: dict[str, Any]) -> None:
        self._event_times_s.append(time.perf_counter())
        self._num_tokens = values["usage"]["completion_tokens"]
        if "data" in values:  # our caption API
            self._texts.append(values["data"][0].get("caption") or "")
        else:
            self._texts.append(values["choices"][0]["message"]["content"] or "")

    def request(self, begun_s: float, num_wanted: int | None) -> Request:
        """Its end is the last token's event, as the public client has it, not `[DONE]`."""
        ended_s = self._event_times_s[-1] if self._event_times_s else time.perf_counter()
        text = "".join(self._texts).strip()
        return Request(begun_s, tuple(self._event_times_s), ended_s, self._num_tokens, num_wanted, self.error, text)
