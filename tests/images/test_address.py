"""The operator's policy: which URLs are fetched at all, hop by hop, and in which words the others are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageUrlRefused
from serve_app.images.gate import ImageBase64, ImageBytes, ImageGate, ImageSource, ImageUrl
from tests.drawings import b64, data_uri
from tests.images.test_fetch import IMAGE, LOOPBACK, Answers, Site, failure, fetch, site

__all__ = ["site"]  # the fixture

LISTED: dict[str, Any] = {"url_policy": "listed", "allowed_networks": ()}


async def refusal(url: str, resolver: Answers | None = None, **values: Any) -> str:
    error = await failure(url, resolver, **values)
    assert isinstance(error, ImageUrlRefused)
    return error.message


async def test_listed_takes_a_listed_host_wherever_its_name_leads(site: Site) -> None:
    url = f"http://images.inner.example:{site.port}/image.png"
    for entry in ("images.inner.example", "*.inner.example", f"images.inner.example:{site.port}"):
        assert await fetch(url, Answers(["127.0.0.1"]), **LISTED | {"allowed_hosts": (entry,)}) == IMAGE


async def test_listed_takes_a_listed_network_whatever_name_leads_there(site: Site) -> None:
    for host in ("whatever.example", "127.0.0.1"):
        url = f"http://{host}:{site.port}/image.png"
        assert await fetch(url, Answers(["127.0.0.1"]), **LISTED | {"allowed_networks": (LOOPBACK,)}) == IMAGE


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://public.example/x.png", "93.184.215.14"), ("http://93.184.215.14/x.png", "93.184.215.14"),
     ("https://[2606:4700:4700::1111]/x.png", "2606:4700:4700::1111"), ("http://10.1.2.3/x.png", "10.1.2.3"),
     ("http://good.example.evil.example/x.png", "93.184.215.14"), ("http://good.example:81/x.png", "93.184.215.14")],
)  # fmt: skip
async def test_listed_refuses_the_rest_of_the_world(url: str, address: str) -> None:
    listed = LISTED | {"allowed_hosts": ("good.example:80",), "allowed_networks": ("192.168.0.0/16",)}
    message = await refusal(url, Answers([address]), **listed)
    assert "url_policy is 'listed'" in message
    assert "base64" in message
    assert "isn't public" not in message


async def test_listed_asks_no_name_server_about_a_name_that_nothing_could_allow() -> None:
    resolver = Answers(["93.184.215.14"])
    await refusal("http://secret-data.evil.example/", resolver, **LISTED | {"allowed_hosts": ("good.example",)})
    assert resolver.num_asked == 0


@pytest.mark.parametrize("target", ["http://elsewhere.example:PORT/image.png", "http://127.0.0.1:PORT/image.png"])
async def test_listed_holds_for_every_hop(site: Site, target: str) -> None:
    url = f"http://good.example:{site.port}/to?at={target.replace('PORT', str(site.port))}"
    await refusal(url, Answers(["127.0.0.1"]), **LISTED | {"allowed_hosts": ("good.example",)})
    assert [request.path for request in site.requests] == ["/to"]


async def test_listed_follows_from_one_listed_place_to_another(site: Site) -> None:
    url = f"http://good.example:{site.port}/to?at=http://127.0.0.1:{site.port}/image.png"
    listed = LISTED | {"allowed_hosts": ("good.example",), "allowed_networks": (LOOPBACK,)}
    assert await fetch(url, Answers(["127.0.0.1"]), **listed) == IMAGE


@pytest.mark.parametrize(
    "url", ["http://good.example/x.png", "https://1.1.1.1/", "ftp://a/", "nonsense:", "http://["]
)
async def test_none_fetches_nothing_and_says_what_to_send(url: str) -> None:
    resolver = Answers(["93.184.215.14"])
    values = {"url_policy": "none", "allowed_hosts": ("good.example",)}
    message = await refusal(url, resolver, **values)
    assert "fetches no URLs" in message
    assert all(way in message for way in ("base64", "data URI", "upload"))
    assert resolver.num_asked == 0


SENT: dict[str, ImageSource] = {
    "upload": ImageBytes(IMAGE),
    "base64": ImageBase64(b64(IMAGE)),
    "data URI": ImageUrl(data_uri(IMAGE)),
}


@pytest.mark.parametrize("source", SENT.values(), ids=list(SENT))
async def test_none_takes_what_is_sent(source: ImageSource) -> None:
    gate = ImageGate(ImageConfig(url_policy="none"))
    assert (await gate.load(source, "image")).width == 40
    await gate.close()


async def test_a_refusal_for_no_public_address_says_so() -> None:
    assert "isn't public" in await refusal("http://10.0.0.1/")


def test_listed_with_nothing_listed_is_a_config_error() -> None:
    with pytest.raises(ValidationError, match="url_policy is 'listed' and nothing is"):
        ImageConfig(url_policy="listed")
    with pytest.raises(ValidationError, match="url_policy"):
        ImageConfig.model_validate({"url_policy": "private"})
