"""The way to the sidecar: kept while it answers, whoever leaves meanwhile, and looked up again after a failure."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from serve_app.access.budget import Ask, Grant
from serve_app.access.keys import Key
from serve_app.deployments import sidecar_link
from serve_app.deployments.sidecar_link import SidecarLink
from serve_app.errors import Unanswered

ASK = Ask(Key(name="k", id="k"), 1, 0, 0)


class Handle:
    """Stands where Ray Serve's handle does: answers, fails, or says nothing until it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.fails = False
        self.lease = self

    def remote(self, ask: Ask) -> Awaitable[Grant]:
        return self._answer()

    async def _answer(self) -> Grant:
        await self.may_answer.wait()
        if self.fails:
            raise ConnectionError("gone")
        return Grant({})


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    made: list[Handle] = []

    def look_up(_: str) -> Any:
        made.append(Handle())
        return made[-1]

    monkeypatch.setattr("serve_app.deployments.sidecar_link.serve.get_app_handle", look_up)
    return made


async def until_made(handles: list[Handle], count: int) -> None:
    for _ in range(6000):
        if len(handles) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(handles)} handles were looked up, and not {count}")


async def test_who_leaves_takes_the_handle_from_nobody(handles: list[Handle]) -> None:
    link = SidecarLink("metrics")
    leaver = asyncio.create_task(link.lease(ASK))
    await until_made(handles, 1)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    handles[0].may_answer.set()
    assert await link.lease(ASK) == Grant({})
    assert len(handles) == 1


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
async def test_after_a_failure_it_is_looked_up_again(
    handles: list[Handle], monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(sidecar_link, "_LEASE_S", 0.01 if hangs else 60.0)
    link = SidecarLink("metrics")
    first = asyncio.create_task(link.lease(ASK))
    await until_made(handles, 1)
    handles[0].fails = True
    if not hangs:
        handles[0].may_answer.set()
    with pytest.raises(Unanswered):
        await first
    monkeypatch.setattr(sidecar_link, "_LEASE_S", 60.0)
    again = asyncio.create_task(link.lease(ASK))
    await until_made(handles, 2)
    handles[1].may_answer.set()
    assert await again == Grant({})
