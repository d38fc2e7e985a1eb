"""The requests of a soak: what each asks, and as what it ended, told by whoever sent it.

Each ends as exactly one of: `answered` (and right), `refused` (a status and a code), `failed` (an error event),
`lost` (no whole answer and no reason), `cancelled` (by its own client), `wrong` (nothing that may happen).
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.drawings import COLORS, SHAPES, b64, png, says

CHAT, CAPTIONS = "/v1/chat/completions", "/v1/captions"
LANES = ("", "/models/script")  # the ingress, and the one model that has a lane of its own
ENDS = ("answered", "refused", "failed", "lost", "cancelled", "wrong")
# What may happen to any request while processes die.
ALWAYS_POSSIBLE = frozenset(
    {"rate_limit_exceeded", "overloaded", "replica_died", "model_not_ready", "deadline_exceeded"}
)
NUM_SLOW_TOKENS = 120
REQUEST_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class End:
    """As what a request ended; `detail` is a status and a code, or what is wrong."""

    outcome: str
    detail: str = ""
    text: str = ""


class Client:
    """One client with its key. Every request is its own, told by `number`."""

    def __init__(self, http: httpx.AsyncClient, secret: str, seed: int) -> None:
        self.http = http
        self.headers = {"authorization": f"Bearer {secret}"}
        self.rng = random.Random(seed)
        self.number = 0
        self.lane = ""  # of the request under way

    async def one(self) -> tuple[str, End]:
        """The next request: its kind and its end."""
        self.number += 1
        self.lane = ""
        kind = self.rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])[0]
        _, send, own_codes = KINDS[kind]
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                end = await send(self)
        except httpx.TransportError as exc:
            return kind, End("lost", type(exc).__name__)
        except TimeoutError:
            return kind, End("wrong", f"neither an answer nor an error within {REQUEST_TIMEOUT_S:.0f} s")
        code = end.detail.rpartition(" ")[2]
        if end.outcome in ("refused", "failed") and code not in ALWAYS_POSSIBLE | own_codes:
            return kind, End("wrong", f"{end.outcome} with {end.detail}")
        return kind, end

    async def post(self, path: str, headers: dict[str, str] | None = None, **content: Any) -> httpx.Response:
        return await self.http.post(path, headers=self.headers | (headers or {}), **content)

    async def stream(
        self, lane: str, text: str, headers: dict[str, str] | None = None, *, pause_s: float = 0.0, leaves: str = ""
    ) -> End:
        """A streamed chat. `leaves` after some events: `silently`, or with a `DELETE` and then the last word."""
        body = _chat(text, self.model(lane)) | {"stream": True}
        headers = self.headers | (headers or {})
        said, num_events = "", 0
        async with self.http.stream("POST", f"{lane}{CHAT}", json=body, headers=headers) as response:
            if response.status_code != 200:
                await response.aread()
                return refusal(response)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return End("answered", text=said)
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    code = event["error"]["code"]
                    return End("cancelled" if code == "request_cancelled" else "failed", code)
                num_events += 1
                said += event["choices"][0]["delta"].get("content", "") if event["choices"] else ""
                await asyncio.sleep(pause_s)
                if num_events == 4 and leaves and not await self._called_off(leaves, lane, event["id"]):
                    return End("cancelled", "left")
        return End("lost", "cut stream")

    async def _called_off(self, leaves: str, lane: str, request_id: str) -> bool:
        """Whether the request's own stream will say so."""
        if leaves == "silently":
            return False
        answer = await self.http.delete(f"{lane}/v1/requests/{request_id}", headers=self.headers)
        return answer.status_code == 200

    def choose_lane(self) -> str:
        self.lane = self.rng.choice(LANES)
        return self.lane

    def model(self, lane: str) -> str:
        return "script" if lane else self.rng.choice(("script", "plain"))


def _chat(text: str, model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def refusal(response: httpx.Response) -> End:
    """The status and our code; a proxy's own words are no reason."""
    try:
        return End("refused", f"{response.status_code} {response.json()['error']['code']}")
    except (ValueError, KeyError, TypeError):
        return End("lost", f"{response.status_code} without a code")


def _checked(end: End, right: Callable[[str], bool]) -> End:
    return End("wrong", f"said {end.text[:80]!r}") if end.outcome == "answered" and not right(end.text) else end


def _never(end: End) -> End:
    return _checked(end, lambda text: False)


async def _echo(client: Client) -> End:
    word = f"word-{id(client)}-{client.number}"
    lane = client.choose_lane()
    if client.rng.random() < 0.5:
        return _checked(await client.stream(lane, f"!echo {word} and more"), f"{word} and more".__eq__)
    response = await client.post(f"{lane}{CHAT}", json=_chat(f"!echo {word}", client.model(lane)))
    if response.status_code != 200:
        return refusal(response)
    return _checked(End("answered", text=response.json()["choices"][0]["message"]["content"]), word.__eq__)


async def _caption(client: Client) -> End:
    color, shape = client.rng.choice(sorted(COLORS)), client.rng.choice(SHAPES)
    image = png(color, shape)
    if client.rng.random() < 0.5:
        response = await client.post(CAPTIONS, files={"image": image}, data={"model": "demo"})
    else:
        response = await client.post(CAPTIONS, json={"model": "demo", "image": b64(image)})
    if response.status_code != 200:
        return refusal(response)
    return _checked(End("answered", text=response.json()["data"][0]["caption"]), lambda t: says(t, color, shape))


async def _malformed(client: Client) -> End:
    body = client.rng.choice((b"{", b"[]", b'{"messages": 5}', b'{"messages": [], "n": NaN}', b"\xff", b"[" * 9999))
    response = await client.post(client.choose_lane() + client.rng.choice((CHAT, CAPTIONS)), content=body)
    return _never(End("answered") if response.status_code == 200 else refusal(response))


async def _deadline(client: Client) -> End:
    return _never(await client.stream(client.choose_lane(), "!slow 20", {"x-request-timeout": "0.4"}))


async def _hang(client: Client) -> End:
    return _never(await client.stream(client.choose_lane(), "!hang", {"x-request-timeout": "1.5"}))


async def _slow_reader(client: Client) -> End:
    end = await client.stream(client.choose_lane(), f"!tokens {NUM_SLOW_TOKENS}", pause_s=0.02)
    return _checked(end, "".join(f"token{index} " for index in range(NUM_SLOW_TOKENS)).__eq__)


async def _leaver(client: Client) -> End:
    return _never(await client.stream(client.choose_lane(), "!tokens 100000", leaves="silently"))


async def _canceller(client: Client) -> End:
    return _never(await client.stream(client.choose_lane(), "!tokens 100000", leaves="with a DELETE"))


async def _engine_failure(client: Client) -> End:
    return _never(await client.stream(client.choose_lane(), client.rng.choice(("!oom", "!fail-after 3"))))


# How often, what, and the codes that belong to it.
KINDS: dict[str, tuple[int, Callable[[Client], Awaitable[End]], frozenset[str]]] = {
    "echo": (40, _echo, frozenset()),
    "caption": (10, _caption, frozenset()),
    "malformed": (10, _malformed, frozenset({"invalid_request"})),
    "deadline": (5, _deadline, frozenset()),
    "hang": (3, _hang, frozenset()),
    "slow reader": (5, _slow_reader, frozenset()),
    "leaver": (8, _leaver, frozenset()),
    "canceller": (8, _canceller, frozenset()),
    "engine failure": (6, _engine_failure, frozenset({"engine_failed"})),
}
