"""One fetch for many who wait, bytes kept for a while, and bounded connections."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageFetchFailed, RequestError
from serve_app.images.cache import Fetched, ImageCache, SharedFetches, allowed_keep_s
from serve_app.images.fetch import ImageFetcher
from tests.images.test_fetch import IMAGE, LOOPBACK, Answers
from tests.scripted_clock import Clock

NEVER_S = 3600.0


# --- what may be kept


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [("", 60), ("public", 60), ("max-age=5", 5), ("max-age=3600", 60), ("MAX-AGE = 5", 5), ('max-age="5"', 5),
     ("s-maxage=7, max-age=9", 7), ("max-age=60, max-age=0", 0), ("max-age=0", 0), ("max-age=x", 0),
     ("max-age=-1", 0), ("max-age", 0), ("max-age=٣", 0), ("max-age=" + "9" * 500, 60), ("no-store", 0),
     ("No-Cache", 0), ("private", 0), ("public, private", 0), ('private="set-cookie, x"', 0), ("no-storeroom", 60),
     (",,=,", 60), ("immutable", 60)],
)  # fmt: skip
def test_cache_control(cache_control: str, seconds: float) -> None:
    assert allowed_keep_s(cache_control, 60) == seconds


def test_the_cache_forgets_in_time() -> None:
    clock = Clock(0.0)
    cache = ImageCache(100_000, clock)
    cache.put("a", Fetched(b"x", 10))
    clock.now_s = 9.9
    assert cache.get("a") == b"x"
    clock.now_s = 10.0
    assert cache.get("a") is None
    assert cache.entries.currsize == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = ImageCache(100_000)
    for name in "abcd":
        cache.put(name, Fetched(b"x" * 24_000, 10))
    assert cache.get("a")
    cache.put("e", Fetched(b"x" * 24_000, 10))
    assert [name for name in "abcde" if cache.get(name)] == ["a", "c", "d", "e"]
    assert cache.entries.currsize <= 100_000


def test_one_image_takes_at_most_a_quarter() -> None:
    cache = ImageCache(100_000)
    cache.put("a", Fetched(b"x" * 24_000, 10))
    cache.put("b", Fetched(b"x" * 25_001, 10))
    assert cache.get("a")
    assert cache.get("b") is None


def test_long_urls_and_tiny_images_count_too() -> None:
    cache = ImageCache(100_000)
    for number in range(1000):
        cache.put(f"{number}{'u' * 8000}", Fetched(b"x", 10))
    assert sum(cache.get(f"{number}{'u' * 8000}") is not None for number in range(1000)) == 11


def test_a_cache_of_no_bytes_keeps_nothing_and_replacing_counts_once() -> None:
    nothing = ImageCache(0)
    nothing.put("a", Fetched(b"", 10))
    assert nothing.get("a") is None
    cache = ImageCache(10_000)
    for data in (b"x" * 1000, b"y" * 10, b"y" * 10):
        cache.put("a", Fetched(data, 10))
    assert cache.get("a") == b"y" * 10
    assert cache.entries.currsize < 1000
    cache.put("a", Fetched(b"z", 0))  # what may no longer be kept also takes its predecessor away
    assert cache.get("a") is None


# --- one fetch for all who wait


class Source:
    """A fetch that ends when told to, and counts how often it began and was given up."""

    def __init__(self, keep_s: float = NEVER_S) -> None:
        self.end = asyncio.Event()
        self.error: Exception | None = None
        self.keep_s = keep_s
        self.num_begun = self.num_cancelled = 0

    def __call__(self) -> Coroutine[Any, Any, Fetched]:
        return self._fetch()

    async def _fetch(self) -> Fetched:
        self.num_begun += 1
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error:
            raise self.error
        return Fetched(b"data", self.keep_s)


def shared(joinable_s: float = NEVER_S) -> SharedFetches:
    return SharedFetches(ImageCache(100_000), joinable_s)


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_many_who_wait_share_one_fetch_and_its_bytes_are_kept() -> None:
    fetches, source = shared(), Source()
    waiting = [asyncio.create_task(fetches.get("u", source)) for _ in range(20)]
    await turns()
    source.end.set()
    assert await asyncio.gather(*waiting) == [b"data"] * 20
    assert await fetches.get("u", source) == b"data"
    assert source.num_begun == 1
    assert await fetches.get("other", source) == b"data"
    assert source.num_begun == 2


async def test_what_may_not_be_kept_is_fetched_again() -> None:
    fetches, source = shared(), Source(keep_s=0)
    source.end.set()
    for _ in range(2):
        assert await fetches.get("u", source) == b"data"
    assert source.num_begun == 2


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    fetches, source = shared(), Source()
    first, second = (asyncio.create_task(fetches.get("u", source)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert source.num_cancelled == 0
    source.end.set()
    assert await second == b"data"
    assert first.cancelled()


async def test_the_last_who_leaves_ends_the_fetch_and_a_newcomer_gets_a_new_one() -> None:
    fetches, source = shared(), Source()
    waiting = [asyncio.create_task(fetches.get("u", source)) for _ in range(2)]
    await turns()
    for task in waiting:
        task.cancel()
    await turns(1)
    newcomer = asyncio.create_task(fetches.get("u", source))
    await turns()
    assert (source.num_begun, source.num_cancelled) == (2, 1)
    source.end.set()
    assert await newcomer == b"data"


async def test_an_error_reaches_all_and_is_not_kept() -> None:
    fetches, source = shared(), Source()
    source.error = ImageFetchFailed("no")
    waiting = [asyncio.create_task(fetches.get("u", source)) for _ in range(3)]
    await turns()
    source.end.set()
    assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [ImageFetchFailed] * 3
    source.error = None
    assert await fetches.get("u", source) == b"data"


async def test_a_fetch_that_hangs_gets_no_company() -> None:
    fetches, hanging, healthy = shared(joinable_s=0), Source(), Source()
    first = asyncio.create_task(fetches.get("u", hanging))
    await turns()
    healthy.end.set()
    assert await fetches.get("u", healthy) == b"data"
    first.cancel()
    await turns()
    assert hanging.num_cancelled == 1


async def test_closing_ends_what_runs() -> None:
    fetches, source = shared(), Source()
    waiting = asyncio.create_task(fetches.get("u", source))
    await turns()
    await fetches.close()
    assert source.num_cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- through the fetcher


class Images:
    """A server that holds every answer back until `open` is set, and counts connections."""

    def __init__(self, headers: str, status: str) -> None:
        self.start = f"HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n".encode()
        self.open = asyncio.Event()
        self.paths: list[str] = []
        self.num_now = self.num_most = 0
        self.arrived = asyncio.Condition()
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.paths.append(request.split(b" ")[1].decode())
        self.num_now += 1
        self.num_most = max(self.num_most, self.num_now)
        async with self.arrived:
            self.arrived.notify_all()
        gone = asyncio.create_task(reader.read())
        await asyncio.wait({gone, asyncio.create_task(self.open.wait())}, return_when=asyncio.FIRST_COMPLETED)
        self.num_now -= 1
        writer.write(self.start + IMAGE)
        writer.close()

    async def has_asked(self, num_requests: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.paths) >= num_requests)


@asynccontextmanager
async def images(headers: str = "", status: str = "200 OK") -> AsyncIterator[Images]:
    site = Images(headers, status)
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield site
    finally:
        site.open.set()
        server.close()


def fetcher(**values: Any) -> ImageFetcher:
    config = ImageConfig(**({"allowed_networks": (LOOPBACK,), "fetch_timeout_s": 20} | values))
    return ImageFetcher(config, Answers(["127.0.0.1"]))


async def test_requests_for_one_url_ask_the_server_once() -> None:
    async with images() as site:
        pool = fetcher()
        waiting = [asyncio.create_task(pool.fetch(f"{site.url}/a?sig=1#{n}", f"image[{n}]")) for n in range(30)]
        await site.has_asked(1)
        site.open.set()
        assert await asyncio.gather(*waiting) == [IMAGE] * 30
        assert await pool.fetch(f"{site.url}/a?sig=1", "image") == IMAGE
        assert await pool.fetch(f"{site.url}/a?sig=2", "image") == IMAGE
        assert site.paths == ["/a?sig=1", "/a?sig=2"]


async def test_each_who_waits_gets_the_error_under_their_own_name() -> None:
    async with images("Content-Encoding: br\r\n") as site:
        pool = fetcher()
        waiting = [asyncio.create_task(pool.fetch(f"{site.url}/a", f"image[{n}]")) for n in range(3)]
        await site.has_asked(1)
        site.open.set()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert len(site.paths) == 1
    for number, error in enumerate(errors):
        assert isinstance(error, RequestError)
        assert error.param == f"image[{number}]"
        assert error.message.startswith(f"image[{number}]: the image's server sends it compressed")


async def test_each_who_waits_has_a_deadline_of_their_own() -> None:
    """The first gives up, and the fetch goes on for the second, who came while it still had a future."""
    async with images() as site:
        pool = fetcher(fetch_timeout_s=2)
        first = asyncio.create_task(pool.fetch(f"{site.url}/a", "first"))
        await site.has_asked(1)
        await asyncio.sleep(0.5)
        second = asyncio.create_task(pool.fetch(f"{site.url}/a", "second"))
        with pytest.raises(ImageFetchFailed, match="first: the image didn't arrive"):
            await first
        site.open.set()
        assert await second == IMAGE
        assert len(site.paths) == 1


@pytest.mark.parametrize(
    ("headers", "values", "num_asked"),
    [("", {}, 1), ("Cache-Control: max-age=60\r\n", {}, 1), ("Cache-Control: no-store\r\n", {}, 2),
     ("Cache-Control: public\r\nCache-Control: max-age=0\r\n", {}, 2), ("", {"fetch_cache_bytes": 0}, 2),
     ("", {"fetch_cache_s": 0}, 2), ("", {"fetch_cache_bytes": 4 * len(IMAGE)}, 2)],
)  # fmt: skip
async def test_when_an_image_is_asked_for_again(headers: str, values: dict[str, Any], num_asked: int) -> None:
    async with images(headers) as site:
        site.open.set()
        pool = fetcher(**values)
        for _ in range(2):
            assert await pool.fetch(f"{site.url}/a", "image") == IMAGE
        assert len(site.paths) == num_asked


@pytest.mark.parametrize(("cache_control", "num_asked"), [("public", 1), ("no-store", 2)])
async def test_a_redirect_has_a_say_in_what_is_kept(cache_control: str, num_asked: int) -> None:
    async with images() as end:
        headers = f"Cache-Control: {cache_control}\r\nLocation: {end.url}/a\r\n"
        async with images(headers, "302 Found") as start:
            start.open.set()
            end.open.set()
            pool = fetcher()
            for _ in range(2):
                assert await pool.fetch(f"{start.url}/", "image") == IMAGE
            assert (len(start.paths), len(end.paths)) == (num_asked, num_asked)


async def test_only_success_is_kept() -> None:
    async with images(status="404 Not Found") as site:
        site.open.set()
        pool = fetcher()
        for _ in range(2):
            with pytest.raises(ImageFetchFailed, match="status 404"):
                await pool.fetch(f"{site.url}/a", "image")
        assert len(site.paths) == 2


async def test_connections_to_one_host_are_bounded_and_do_not_hold_up_another() -> None:
    async with images() as slow, images() as fast:
        pool = fetcher(max_fetches_per_host=3, max_fetches=4)
        fast.open.set()
        port = slow.url.rpartition(":")[2]
        urls = [f"http://{host}:{port}/{n}" for n, host in enumerate(["slow.example", "SLOW.example."] * 5)]
        waiting = [asyncio.create_task(pool.fetch(url, "image")) for url in urls]
        await slow.has_asked(3)
        assert await pool.fetch(f"{fast.url}/x", "image") == IMAGE
        assert slow.num_most == 3
        slow.open.set()
        assert await asyncio.gather(*waiting) == [IMAGE] * 10
        assert slow.num_most == 3


async def test_connections_are_bounded_in_all_and_waiting_counts_against_the_deadline() -> None:
    async with images() as site:
        pool = fetcher(max_fetches=2, fetch_timeout_s=0.5)
        port = site.url.rpartition(":")[2]
        waiting = [asyncio.create_task(pool.fetch(f"http://host{n}.example:{port}/", f"i{n}")) for n in range(6)]
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [ImageFetchFailed] * 6
        assert len(site.paths) == 2
        site.open.set()
        assert await pool.fetch(f"{site.url}/", "image") == IMAGE


async def test_a_turn_is_given_back_however_a_fetch_ends() -> None:
    async with images() as site:
        pool = fetcher(max_fetches=1)
        for _ in range(3):
            task = asyncio.create_task(pool.fetch(f"{site.url}/", "image"))
            await site.has_asked(1)
            site.paths.clear()
            task.cancel()
            await asyncio.wait({task})
        with pytest.raises(RequestError):
            await pool.fetch("http://10.0.0.1/", "image")
        site.open.set()
        assert await pool.fetch(f"{site.url}/", "image") == IMAGE
