"""The hostile URLs and images of the tests, grouped by kind, as they can be sent to any server from outside.

Where the tests point names at a resolver of their own, here a hosts file does; so what changes between two answers
(rebinding), and name servers that fail, are left out. Knows nothing of servers under test.
"""

import ipaddress
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import ImageTooLarge
from serve_app.images.formats import FORMATS
from tests.hostile_images import PNG_MAGIC, jpeg_of_scans, noise, png_chunk, save, squeezed
from tests.images.test_fetch import Answers
from tests.images.test_hostile_images import BOMBS, BROKEN_FILES, ODD, PARTS
from tests.images.test_hostile_urls import (
    ADDRESSES,
    IN_A_HEADER,
    NAMES,
    NO_LINE_ENDS,
    REDIRECTS,
    SERVERS,
    Behaviour,
    redirect,
)

GOOD, BAD = "198.41.0.4", "199.9.14.201"  # public ones, which must lead nowhere but here: see hostile_site.py
GOOD_HOST, BAD_HOST = "good.example", "bad.example"

PLAIN = "inside addresses as they are"
SPELLED = "inside addresses in other spellings"
EMBEDDED = "IPv4 inside IPv6"
NAMED = "names that lead inside, or look like a good one"
DISGUISED = "users, passwords, backslashes, hashes"
MALFORMED = "hardly a URL"
SCHEMES = "other schemes"
REDIRECTED = "all of these spellings behind a redirect"
REDIRECTS_LEFT = "other redirects"
SLOW = "servers that are slow or silent"
ENDLESS = "servers that never end, or send too much"
UNSOUND = "servers that break off, or speak no HTTP"
STATUSES = "servers with another status or encoding"
EDGES = "absurd edges"
BOMB = "what inflates or repeats"
BROKEN = "broken, or no image"
CUT = "cut short"
POLYGLOT = "two formats in one"
ANIMATED = "several images in one"
FINE = "odd, and fine"
LARGE = "whole, and very large"  # not among the tests' files, which no limit lets through
URL_GROUPS = (
    PLAIN, SPELLED, EMBEDDED, NAMED, DISGUISED, MALFORMED, SCHEMES, REDIRECTED, REDIRECTS_LEFT,
    SLOW, ENDLESS, UNSOUND, STATUSES,
)  # fmt: skip
IMAGE_GROUPS = (EDGES, BOMB, BROKEN, CUT, POLYGLOT, ANIMATED, FINE, LARGE)
GROUPS = URL_GROUPS + IMAGE_GROUPS


@dataclass(frozen=True, slots=True)
class Case:
    """A URL or a file. `behaviour`: what `BAD` does. `PORT`, in both, stands for that of the case's listener."""

    group: str
    name: str
    url: str = ""
    behaviour: Behaviour | None = None
    file: bytes | None = None


# The first whose words are in the name of an address with http.
_BY_NAME = (
    (EMBEDDED, r"mapped|NAT64|6to4 of|Teredo|ISATAP|IPv4-"),
    (NAMED, r"localhost|a name that leads|the listed host as a |look-alike"),
    (
        MALFORMED,
        r"newline|tab |carriage|space|NUL|hyphen|empty|only dots|slash|^port|never closed|future|zone|nine thousand"
        r"|twice",
    ),
    (
        SPELLED,
        r"short form|decimal|hexadecimal|octal|bases|padded|parts|as last label|trailing|full-width|ideographic"
        r"|circled|Arabic|percent|^zero$",
    ),
)
_NO_PORT = re.compile(r"^http://(\[[^\]/]+\]|[^/:@\\\[\]?#]+)/")
_HANGS = r"silence|drip|a length too large"


def kind_of_address(name: str, url: str) -> str:
    if not url.startswith("http:"):
        return SCHEMES
    if "@" in url or "\\" in url:
        return DISGUISED
    return next((group for group, words in _BY_NAME if re.search(words, name)), PLAIN)


def with_port(url: str) -> str:
    """A plain URL without a port gets the listener's, so that a connection can be told from another case's."""
    return url if "PORT" in url else _NO_PORT.sub(r"http://\1:PORT/", url)


def hosts() -> dict[str, list[str]]:
    """What each name leads to. Of the tests' names, those whose answer is always the same, and short."""
    names = {GOOD_HOST: [GOOD], BAD_HOST: [BAD], "localhost": ["127.0.0.1", "::1"]}
    names |= {name: ["127.0.0.1"] for name in ("loopback.example", "good.example.evil.example", "evilgood.example")}
    return names | {_host(name): addresses for name, addresses in _fixed_answers()}


def _fixed_answers() -> Iterator[tuple[str, list[str]]]:
    for name, (resolver, _, _) in NAMES.items():
        if isinstance(resolver, Answers) and len(resolver.answers) == 1:
            addresses = resolver.answers[0]
            if 0 < len(addresses) < 10 and all(_is_address(address) for address in addresses):
                yield name, addresses


def _is_address(text: str) -> bool:
    try:
        return not getattr(ipaddress.ip_address(text), "scope_id", None)
    except ValueError:
        return False


def _host(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()) + ".names.example"


def kind_of_server(name: str) -> str:
    behaviour, error_class, words = SERVERS[name]
    if re.search(_HANGS, name):
        return SLOW
    if behaviour.again or error_class is ImageTooLarge:
        return ENDLESS
    return STATUSES if words.startswith("status") or words == "Content-Encoding" else UNSOUND


def kind_of_odd_image(name: str) -> str:
    if " and " in name:
        return POLYGLOT
    return ANIMATED if re.search(r"animated|two pages|two images", name) else FINE


def _url_cases() -> Iterator[Case]:
    at_bad = f"http://{BAD_HOST}:PORT/"
    for name, url in ADDRESSES.items():
        yield Case(kind_of_address(name, url), name, with_port(url))
    for name, _ in _fixed_answers():
        yield Case(NAMED, f"a name: {name}", f"http://{_host(name)}:PORT/image.png")
    for name in IN_A_HEADER:
        location = with_port(ADDRESSES[name]).translate(NO_LINE_ENDS).encode()
        yield Case(REDIRECTED, name, at_bad, redirect(location))
    for name, (location, _, _) in REDIRECTS.items():
        leads_to = with_port(location.decode("latin-1")).encode("latin-1")
        yield Case(REDIRECTS_LEFT, name, at_bad, redirect(leads_to))
    for name, (behaviour, _, _) in SERVERS.items():
        yield Case(kind_of_server(name), name, at_bad, behaviour)


def _image_cases() -> Iterator[Case]:
    for name, (file, error_class, _) in BOMBS.items():
        yield Case(EDGES if error_class is ImageTooLarge else BOMB, name, file=file)
    for name, (file, _, _) in BROKEN_FILES.items():
        yield Case(BROKEN, name, file=file)
    for image_format in FORMATS:
        whole = save(noise(), image_format)
        for part in PARTS:
            yield Case(CUT, f"{image_format} of {part:.0%}", file=whole[: int(len(whole) * part)])
    for name, (file, _, _) in ODD.items():
        yield Case(kind_of_odd_image(name), name, file=file)
    yield Case(LARGE, "PNG of 49 million pixels", file=_black_png(7000))
    yield Case(LARGE, "PNG of 169 million pixels", file=_black_png(13_000))
    yield Case(LARGE, "JPEG of 49 million pixels in 90 scans", file=jpeg_of_scans(7000, 90))


def _black_png(edge: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0))
    return PNG_MAGIC + header + png_chunk(b"IDAT", squeezed((1 + 3 * edge) * edge)) + png_chunk(b"IEND", b"")


def all_cases() -> dict[str, list[Case]]:
    """By group, in the page's order."""
    cases = [*_url_cases(), *_image_cases()]
    return {group: [case for case in cases if case.group == group] for group in GROUPS}
