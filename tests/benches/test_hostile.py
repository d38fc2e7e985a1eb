"""The comparison under hostile cases: every case has its kind, outcomes are what they are called, tables add up."""

import re
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

from benchmarks.hostile import NUM_AT_ONCE
from benchmarks.hostile_cases import (
    ANIMATED,
    BAD,
    DISGUISED,
    EMBEDDED,
    GOOD,
    GROUPS,
    LARGE,
    MALFORMED,
    NAMED,
    PLAIN,
    POLYGLOT,
    REDIRECTED,
    SCHEMES,
    SPELLED,
    Case,
    all_cases,
    hosts,
    kind_of_address,
    kind_of_odd_image,
    with_port,
)
from benchmarks.hostile_figures import (
    OUTCOMES,
    Cost,
    Outcome,
    Results,
    Seen,
    classify,
    cost_table,
    outcome_table,
    read,
    totals,
    write,
)
from benchmarks.hostile_servers import HARDENED_ENVIRONMENT, HARDENED_FLAGS, data_uri
from benchmarks.hostile_site import listening
from serve_app.images.address import is_public
from tests.images.test_hostile_images import NUM_HOSTILE_IMAGES
from tests.images.test_hostile_urls import ADDRESSES, IN_A_HEADER, REDIRECTS, SERVERS, redirect

PAGE = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text()
SECTION = PAGE.partition("### Beside vllm serve")[2].partition("\n### ")[0]


# --- cases


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("loopback", PLAIN),
        ("metadata", PLAIN),
        ("metadata, decimal", SPELLED),
        ("trailing dot", SPELLED),
        ("metadata, mapped in hexadecimal", EMBEDDED),
        ("localhost, trailing dot", NAMED),
        ("the listed host before a hash", DISGUISED),
        ("port 0", MALFORMED),
        ("gopher", SCHEMES),
    ],
)
def test_kinds_of_addresses(name: str, kind: str) -> None:
    assert kind_of_address(name, ADDRESSES[name]) == kind


@pytest.mark.parametrize(("name", "kind"), [("JPEG and ZIP", POLYGLOT), ("TIFF of two pages", ANIMATED)])
def test_kinds_of_odd_images(name: str, kind: str) -> None:
    assert kind_of_odd_image(name) == kind


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("http://10.0.0.1/", "http://10.0.0.1:PORT/"),
        ("http://[fd00::1]/a", "http://[fd00::1]:PORT/a"),
        ("http://127.0.0.1:PORT/", "http://127.0.0.1:PORT/"),
        ("http://good.example:0/", "http://good.example:0/"),
        ("http:///image.png", "http:///image.png"),
        ("file:///etc/passwd", "file:///etc/passwd"),
    ],
)
def test_a_plain_url_gets_the_port_of_its_listener(url: str, changed: str) -> None:
    assert with_port(url) == changed


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    return all_cases()


def test_every_hostile_case_of_the_tests_is_there_once(cases: dict[str, list[Case]]) -> None:
    assert set(cases) == set(GROUPS) == set(NUM_AT_ONCE)
    assert all(cases.values())
    images = [case for some in cases.values() for case in some if case.file is not None]
    assert len(images) == NUM_HOSTILE_IMAGES + len(cases[LARGE])
    urls = [case for some in cases.values() for case in some if case.file is None]
    by_name = [case for case in urls if case.name.startswith("a name: ")]
    assert len(urls) == len(ADDRESSES) + len(IN_A_HEADER) + len(REDIRECTS) + len(SERVERS) + len(by_name)
    assert len(cases[REDIRECTED]) == len(IN_A_HEADER)


def test_only_the_two_strangers_have_a_public_address() -> None:
    public = {address for addresses in hosts().values() for address in addresses if is_public(ip_address(address))}
    assert public == {GOOD, BAD}


async def test_a_listener_tells_at_which_address_it_was_reached() -> None:
    async with listening() as listener, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{listener.port}/image.png")
    assert answer.headers["content-type"] == "image/png"
    assert listener.reached == {"127.0.0.1"}


async def test_a_listener_redirects_to_its_own_port() -> None:
    behaviour = redirect(b"http://10.0.0.1:PORT/")
    async with listening(behaviour) as listener, httpx.AsyncClient(trust_env=False) as client:
        with patch("benchmarks.hostile_site.BAD", "127.0.0.1"):
            answer = await client.get(f"http://127.0.0.1:{listener.port}/")
    assert answer.headers["location"] == f"http://10.0.0.1:{listener.port}/"
    assert not listener.reached


def test_a_file_is_sent_as_it_is() -> None:
    assert data_uri(b"GIF89a") == "data:image/jpeg;base64,R0lGODlh"


# --- figures


@pytest.mark.parametrize(
    ("status", "is_late", "is_alive", "outcome"),
    [
        (200, False, True, "answered"),
        (400, False, True, "refused"),
        (422, False, True, "refused"),
        (500, False, True, "failed"),
        (504, False, True, "failed"),
        (None, False, True, "failed"),
        (None, True, True, "hung"),
        (None, True, False, "died"),
        (None, False, False, "died"),
    ],
)
def test_outcomes(status: int | None, is_late: bool, is_alive: bool, outcome: Outcome) -> None:
    assert classify(status, is_late=is_late, is_alive=is_alive) == outcome


def results() -> Results:
    seen = (
        Seen("one", PLAIN, "a", "answered", 200, 0.5, ("10.0.0.1",)),
        Seen("one", PLAIN, "b", "refused", 400, 0.1),
        Seen("one", LARGE, "c", "hung", None, 20.0),
        Seen("two", PLAIN, "a", "refused", 400, 0.01),
        Seen("two", PLAIN, "b", "refused", 400, 0.01),
        Seen("two", LARGE, "c", "answered", 200, 1.0),
    )
    costs = (
        Cost("one", PLAIN, 1.2, 3.4, True, 0.2),
        Cost("one", LARGE, 20.0, 700.0, False, 20.0),
        Cost("two", PLAIN, 0.1, 0.0, True, 0.1),
        Cost("two", LARGE, 1.0, 150.0, True, 0.3),
    )
    return Results({"date": "a day"}, seen, costs)


def test_tables() -> None:
    assert outcome_table(results()).splitlines() == [
        "| what was sent | one | two |",
        "|---|---|---|",
        f"| {PLAIN} (2) | 1 refused, 1 answered; **1 inside** | 2 refused |",
        f"| {LARGE} (1) | 1 hung | 1 answered |",
        "| all (3) | 1 refused, 1 answered, 1 hung; **1 inside** | 2 refused, 1 answered |",
    ]
    assert cost_table(results()).splitlines()[2:] == [
        f"| {PLAIN} | 0.5 / 1 / 3 / 0.2 | 0.0 / 0 / 0 / 0.1 |",
        f"| {LARGE} | 20.0 / 20 / 700 / 20.0, restarted | 1.0 / 1 / 150 / 0.3 |",
    ]


def test_totals() -> None:
    told = totals(results())["one"]
    assert told == {
        "refused": 1, "answered": 1, "failed": 0, "hung": 1, "died": 0, "inside": 1, "slowest_s": 20.0,
        "cpu_s": 21.2, "most_grown_mib": 700.0, "slowest_good_s": 20.0, "restarts": 1,
    }  # fmt: skip


def test_results_survive_their_file(tmp_path: Path) -> None:
    write(results(), tmp_path / "results.json")
    assert read(tmp_path / "results.json") == results()


# --- the page


def test_the_page_names_the_settings_of_the_hardened_server() -> None:
    for name, value in HARDENED_ENVIRONMENT.items():
        assert f"`{name}={value}`" in SECTION
    for flag in HARDENED_FLAGS[::3]:
        assert f"`{flag}" in SECTION


def test_the_page_has_every_group_with_as_many_cases_as_there_are(cases: dict[str, list[Case]]) -> None:
    sizes = {group: len(some) for group, some in cases.items()}
    rows = re.findall(r"^\| (.+?) \((\d+)\) \| (.+?) \| (.+?) \| (.+?) \|$", SECTION, re.MULTILINE)
    assert {name: int(size) for name, size, *_ in rows} == sizes | {"all": sum(sizes.values())}
    for number in range(2, 5):
        cells = [row[number] for row in rows]
        counted = [_counted(cell) for cell in cells]
        assert all(cell.total() == int(row[1]) for cell, row in zip(counted, rows, strict=True))
        assert sum(counted[:-1], Counter()) == counted[-1]


def _counted(cell: str) -> Counter[str]:
    return Counter({name: int(count) for count, name in re.findall(r"(\d+) (\w+)", cell) if name in OUTCOMES})
