"""Bodies that come compressed, and those that say what they are: decoded within the bound, or refused by name."""

import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest

from serve_app.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from serve_app.exchange.body_stream import decoders_of
from tests.drawings import png
from tests.own_lane import MAX_BODY_BYTES, bearer, own_lane

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "!echo hi"}]}).encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": (gzip.compress(BODY), "gzip"),
    "its old name": (gzip.compress(BODY), "X-GZip"),
    "gzip in two members": (gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), "gzip"),
    "deflate": (zlib.compress(BODY), "deflate"),
    "deflate without a head": (raw_deflate(BODY), "deflate"),
    "nothing": (BODY, "identity"),
    "an empty word": (BODY, ""),
    "one in the other": (gzip.compress(zlib.compress(BODY)), "deflate, identity, gzip"),
}


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane")) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60, headers=bearer("all")) as client,
    ):
        yield client


def post(lane: httpx.Client, content: bytes, path: str = CHAT, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lane.post(path, content=content, headers={"content-type": "application/json", **named})


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize(("content", "encoding"), PACKED.values(), ids=list(PACKED))
def test_a_compressed_body_is_read(lane: httpx.Client, content: bytes, encoding: str) -> None:
    answer = post(lane, content, content_encoding=encoding)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hi"


def test_a_compressed_body_may_come_in_any_pieces(lane: httpx.Client) -> None:
    packed = gzip.compress(BODY)
    pieces = iter([packed[i : i + 1] for i in range(len(packed))])
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert lane.post(CHAT, content=pieces, headers=headers).status_code == 200


def test_a_compressed_form_is_read(lane: httpx.Client) -> None:
    form = httpx.Request("POST", "http://it/", files={"image": png("red", "circle")})
    content = gzip.compress(form.read())
    answer = post(lane, content, "/v1/captions", content_encoding="gzip", content_type=form.headers["content-type"])
    assert answer.json()["data"][0]["caption"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, deflate"])
def test_a_bomb_is_too_large(lane: httpx.Client, encoding: str) -> None:
    bomb = b" " * 300_000_000 if encoding == "gzip" else b" " * 30_000_000
    packed = gzip.compress(bomb, 1) if encoding != "deflate" else zlib.compress(bomb, 1)
    if encoding == "gzip, deflate":
        packed = zlib.compress(packed)
    assert len(packed) > MAX_BODY_BYTES if encoding == "gzip" else len(packed) < MAX_BODY_BYTES
    status, code, message = refusal(post(lane, packed, content_encoding=encoding))
    assert (status, code) == (413, "body_too_large"), message
    assert post(lane, BODY).status_code == 200


def test_no_more_than_the_bound_is_ever_made() -> None:
    packed = gzip.compress(b"x" * 50_000_000)
    (decoder,) = decoders_of(["gzip"], 1000)
    with pytest.raises(BodyTooLarge, match="more than 1000 bytes without its gzip"):
        decoder.feed(packed, is_last=True)
    (exact,) = decoders_of(["gzip"], 1000)
    assert exact.feed(gzip.compress(b"x" * 1000), is_last=True) == b"x" * 1000


BROKEN = {
    "a plain body": (BODY, "gzip", "isn't gzip"),
    "a plain body, deflated": (BODY, "deflate", "isn't deflate"),
    "half of it": (gzip.compress(BODY)[:-9], "gzip", "cut short"),
    "nothing": (b"", "gzip", "cut short"),
    "a wrong sum": (gzip.compress(BODY)[:-8] + b"12345678", "gzip", "isn't gzip"),
    "more behind it": (zlib.compress(BODY) + b"more", "deflate", "goes on"),
    "words behind it": (gzip.compress(BODY) + b"more", "gzip", "isn't gzip"),
    "very many members": (gzip.compress(b"") * 1001, "gzip", "goes on"),
}


@pytest.mark.parametrize(("content", "encoding", "says"), BROKEN.values(), ids=list(BROKEN))
def test_what_is_not_what_it_says_is_told_so(lane: httpx.Client, content: bytes, encoding: str, says: str) -> None:
    status, code, message = refusal(post(lane, content, content_encoding=encoding))
    assert (status, code) == (400, "invalid_request")
    assert says in message


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "x" * 2000, "gzip, gzip, gzip"])
def test_another_encoding_is_refused_by_name(lane: httpx.Client, encoding: str) -> None:
    answer = post(lane, BODY, content_encoding=encoding)
    status, code, message = refusal(answer)
    assert (status, code) == (415, "unsupported_media_type")
    assert encoding.split(", ")[-1][:100] in message or "3 codings" in message
    assert len(message) < 300
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_broken_bytes_never_raise_anything_else() -> None:
    for encoding in ("gzip", "deflate", "gzip, deflate"):
        packed = gzip.compress(BODY) if encoding == "gzip" else zlib.compress(BODY)
        for i in range(len(packed)):
            data = packed[:i] + bytes([packed[i] ^ 0xFF]) + packed[i + 1 :]
            try:
                for decoder in decoders_of([encoding], 10_000):
                    data = decoder.feed(data, is_last=True)
            except (InvalidRequest, BodyTooLarge) as error:
                assert error.message  # noqa: PT017 -- either is right, and some bytes change nothing
    with pytest.raises(UnsupportedMediaType):
        decoders_of(["gzip", "br"], 1)


JSON_TYPES = [
    "application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json",
    "text/json", "application/octet-stream", "application/x-www-form-urlencoded", "",
]  # fmt: skip
OTHER_TYPES = ["text/plain", "text/plain; charset=utf-8", "multipart/form-data", "application/xml", "image/png"]
ROUTES = [CHAT, "/v1/completions", "/generate", "/tokenize", "/chat_tokenize"]


@pytest.mark.parametrize("declared", JSON_TYPES)
def test_what_may_be_json_is_read_as_json(lane: httpx.Client, declared: str) -> None:
    assert post(lane, BODY, content_type=declared).status_code == 200
    assert lane.post(CHAT, content=BODY).status_code == 200


@pytest.mark.parametrize("declared", ["application/json", "application/octet-stream", ""])
@pytest.mark.parametrize("path", ["/", "/invocations", "/generate"])
def test_a_byte_order_mark_does_not_hide_json(lane: httpx.Client, declared: str, path: str) -> None:
    answer = post(lane, b'\xef\xbb\xbf {"inputs": "!echo hi"}', path, content_type=declared)
    assert answer.status_code == 200, answer.text
    assert "hi" in answer.text


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("declared", OTHER_TYPES)
def test_what_says_that_it_is_something_else_is_refused(lane: httpx.Client, path: str, declared: str) -> None:
    answer = post(lane, BODY, path, content_type=declared)
    assert answer.status_code == 415
    assert declared.partition(";")[0] in answer.text
    assert "application/json" in answer.text


def test_captions_and_images_keep_their_own_types(lane: httpx.Client) -> None:
    assert post(lane, b'{"image": "AAAA"}', "/v1/captions", content_type="text/plain").status_code == 415
    assert post(lane, b'{"inputs": "!echo hi"}', "/", content_type="text/plain").status_code == 415
    image = post(lane, png("red", "circle"), "/", content_type="image/png")
    assert image.json()[0]["generated_text"]
    assert post(lane, BODY, "/invocations", content_type="application/octet-stream").status_code == 200
