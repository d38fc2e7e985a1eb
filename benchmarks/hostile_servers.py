"""The servers that get the hostile cases: how each is started and hardened, and how it is asked for a caption."""

import asyncio
import base64
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hostile_cases import BAD_HOST, GOOD_HOST
from benchmarks.hostile_site import listening
from benchmarks.serving.service import Command, Service
from benchmarks.serving.systems import REFERENCE, SYSTEMS, Place, port_of
from benchmarks.serving.workloads import CAPTIONER
from demo_model.phrases import STYLE_PROMPTS
from serve_app.demo import CHECKPOINT
from tests.images.test_fetch import IMAGE

DEADLINE_S = 20.0
START_TIMEOUT_S = 300.0
OURS = "serve_app_default_proxy"  # what `serve-app up` starts
HARDENED_FLAGS = ("--allowed-media-domains", GOOD_HOST, BAD_HOST, "--limit-mm-per-prompt", '{"image": 1}')
HARDENED_ENVIRONMENT = {
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MEDIA_FETCH_MAX_RETRIES": "1",  # three by default, each with four times the last one's patience
    "VLLM_IMAGE_FETCH_TIMEOUT": "10",  # these three as ours has them by default
    "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": "20",
    "VLLM_MAX_IMAGE_PIXELS": "50000000",
}
SERVERS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, str]]] = {
    "vllm serve": (REFERENCE, (), {}),
    "vllm serve, hardened": (REFERENCE, HARDENED_FLAGS, HARDENED_ENVIRONMENT),
    "serve_app": (OURS, (), {}),
}
# Each request on a connection of its own: a case must not suffer from one that the last one broke.
CLIENT: Mapping[str, Any] = {
    "timeout": None,
    "trust_env": False,
    "limits": httpx.Limits(max_keepalive_connections=0),
}


@dataclass(slots=True)
class Running:
    """A server, started, and where its captions are asked for."""

    name: str
    address: str
    service: Service
    commands: Sequence[Command]
    folder: Path
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(**CLIENT))

    async def ask(self, image_url: str, deadline_s: float = DEADLINE_S) -> tuple[int | None, bool, str]:
        """Status (None: no answer), whether the deadline passed, and the beginning of an error's message."""
        text = {"type": "text", "text": STYLE_PROMPTS["short"]}
        content = [text, {"type": "image_url", "image_url": {"url": image_url}}]
        body = {
            "model": CAPTIONER,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 2,
            "temperature": 0,
        }
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self.client.post(f"{self.address}/v1/chat/completions", json=body)
        except TimeoutError:
            return None, True, ""
        except httpx.HTTPError as exc:
            return None, False, type(exc).__name__
        return answer.status_code, False, "" if answer.is_success else answer.text[:300]

    async def answers_good_ones(self) -> bool:
        """An image as data and one by URL: a captioner that serves on answers both."""
        async with listening() as listener:
            for url in (data_uri(IMAGE), f"http://{GOOD_HOST}:{listener.port}/image.png"):
                status, _, _ = await self.ask(url)
                if status != 200:
                    return False
        return True

    async def start_and_wait(self) -> None:
        """Until it answers; ends this program where it doesn't."""
        self.service.start(self.commands, self.folder)
        begun_s = time.monotonic()
        while not await self.answers_good_ones():
            if (ended := self.service.ended()) or time.monotonic() > begun_s + START_TIMEOUT_S:
                sys.exit(f"{self.name} isn't ready ({ended or 'it still runs'}):\n{self.service.last_lines()}")
            await asyncio.sleep(1)


def prepared(name: str, folder: Path) -> Running:
    """Ready to be started; it may write into `folder`, which is made."""
    system, flags, environment = SERVERS[name]
    folder.mkdir()
    place = Place(port_of(SYSTEMS[system].service), folder, {CAPTIONER: CHECKPOINT})
    recipe = SYSTEMS[system].cook(place)
    commands = [Command((*one.words, *flags), {**one.environment, **environment}) for one in recipe.commands]
    service = Service(system, folder / "log")
    return Running(name, recipe.addresses[CAPTIONER], service, commands, folder)


def data_uri(file: bytes) -> str:
    """Named as JPEG whatever it is: no server may go by the name."""
    return "data:image/jpeg;base64," + base64.b64encode(file).decode()
