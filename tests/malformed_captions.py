"""Caption requests, routes, methods and headers that are refused, each with the field that the refusal names."""

import json

from PIL import Image

from serve_app.dialects.tgi.dialect import TGI
from serve_app.ingress.routes import ROUTES
from tests.drawings import b64, encode
from tests.malformed_json import CHAT, NO_OBJECTS, USER, Case
from tests.own_lane import MAX_BODY_BYTES, MAX_HEADER_BYTES, bearer

CAPTIONS = "/v1/captions"
FILE = encode(Image.new("RGB", (4, 4), "red"))
IMAGE = b64(FILE)
GOOD_CHAT = f'{{"messages": [{USER}]}}'.encode()
GOOD_CAPTION = json.dumps({"image": IMAGE}).encode()

# Each value is wrong, and the field itself is named.
FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("5", "[]", json.dumps("x" * 300)),
    "style": ("5", '""', '"poem"', '["short"]', json.dumps("x" * 201)),
    "length": ("0", "-1", "1001", "1.5", "true", '""', '"50"', '"huge"', "[]", json.dumps("x" * 201), "9" * 60),
    "options": ("5", '"include_lighting"', '["include_lighting"]', "{}", json.dumps(["x"] * 33)),
    "name": ("5", '""', '"Ann"', json.dumps("x" * 101)),
    "language": ("5", '""', '"klingon"', json.dumps("x" * 201)),
    "task": ("5", '""', '"od"'),
    "prompt": ("5", '""', "[]"),
    "format": ("5", '"yaml"', "[]", "true"),
    "guard": ("5", '"yes"', "[]"),
    "n": ("0", "17", "1.5", '"2"', "2"),  # the last at temperature 0
    "temperature": ("-0.1", "2.1", '"0"', "true", "1e999"),
    "top_p": ("-0.1", "1.1"),
    "top_k": ("-2", "1.5"),
    "min_p": ("-0.1", "1.1"),
    "repetition_penalty": ("0", "11"),
    "frequency_penalty": ("3",),
    "presence_penalty": ("-3",),
    "max_tokens": ("0", "-1", "1.5", "true", '"5"', "9" * 60),
    "min_tokens": ("-1", "9" * 60),
    "seed": ("1.5", "9223372036854775808"),
    "stop": ("5", '[""]', json.dumps(["x"] * 17)),
    "stream": ("null", "1", '"yes"'),
    "messages": ("[]",),
    "stile": ('"short"',),
}

# (a whole body, the field that is named, a part of the message)
BODIES: tuple[tuple[str, str, str], ...] = (
    ("{}", "image", "exactly one"),
    ('{"image": null}', "image", "exactly one"),
    ('{"image": null, "images": null}', "image", "exactly one"),
    (f'{{"image": "{IMAGE}", "images": ["{IMAGE}"]}}', "image", "exactly one"),
    ('{"image": 5}', "image", "base64"),
    ('{"image": true}', "image", "base64"),
    ('{"image": ["x"]}', "image", "base64"),
    ('{"image": {}}', "image", "exactly one"),
    ('{"image": {"url": null}}', "image", "exactly one"),
    ('{"image": {"url": "x", "b64": "y"}}', "image", "exactly one"),
    ('{"image": {"url": 5}}', "image.url", "string"),
    ('{"image": {"b64": []}}', "image.b64", "string"),
    ('{"image": {"path": "/etc/passwd"}}', "image.path", "unknown field"),
    ('{"images": "x"}', "images", "list"),
    ('{"images": {}}', "images", "list"),
    ('{"images": []}', "images", "at least 1"),
    ('{"images": [null]}', "images[0]", "base64"),
    ('{"images": [5]}', "images[0]", "base64"),
    ('{"images": [[]]}', "images[0]", "base64"),
    (f'{{"images": ["{IMAGE}", {{}}]}}', "images[1]", "exactly one"),
    (f'{{"images": ["{IMAGE}", {{"url": 5}}]}}', "images[1].url", "string"),
    (f'{{"image": "{IMAGE}", "prompt": "hi", "style": "short"}}', "style", "there is a prompt as well"),
    (f'{{"image": "{IMAGE}", "prompt": "hi", "length": 50}}', "length", "there is a prompt as well"),
    (f'{{"image": "{IMAGE}", "style": "short", "length": "longish"}}', "length", "did you mean"),
    (f'{{"image": "{IMAGE}", "style": "detail"}}', "style", "did you mean 'detailed'"),
    (f'{{"image": "{IMAGE}", "language": "germn"}}', "language", "did you mean 'German'"),
    (f'{{"image": "{IMAGE}", "guard": true, "stream": true}}', "guard", "can't be taken back"),
    (f'{{"image": "{IMAGE}", "guard": true, "n": 2, "temperature": 1}}', "guard", "leave out n"),
    (f'{{"image": "{IMAGE}", "guard": {{"retries": 6}}}}', "guard.retries", "less"),
    (f'{{"image": "{IMAGE}", "guard": {{"retry": 1}}}}', "guard.retry", "did you mean 'retries'"),
    (f'{{"image": "{IMAGE}", "guard": {{"checks": []}}}}', "guard.checks", "at least 1"),
    (f'{{"image": "{IMAGE}", "guard": {{"checks": ["loops"]}}}}', "guard.checks", "did you mean 'loop'"),
    (f'{{"image": "{IMAGE}", "guard": {{"checks": [5]}}}}', "guard.checks[0]", ""),
    (f'{{"image": "{IMAGE}", "format": "tags", "style": "short"}}', "format", "lists no tags"),
    (f'{{"image": "{IMAGE}", "format": {{"type": "tags", "schema": {{}}}}}}', "format.schema", "has none"),
    (f'{{"image": "{IMAGE}", "format": {{"type": "json", "schema": 5}}}}', "format.schema", "object"),
    (f'{{"image": "{IMAGE}", "format": {{}}}}', "format.type", "missing"),
    (f'{{"image": "{IMAGE}", "format": {{"type": "xml"}}}}', "format.type", "'json'"),
    (f'{{"image": "{IMAGE}", "format": "json", "task": "od"}}', "format", "a form of its own"),
    (f'{{"image": "{IMAGE}", "min_tokens": 9, "max_tokens": 5}}', "min_tokens", "lower it"),
)

# (an image, its code); each is one JSON text
IMAGES: dict[str, tuple[str, str]] = {
    "no text": ('""', "invalid_image"),
    "white space": ('" \\n "', "invalid_image"),
    "no base64": ('"!!!"', "invalid_image"),
    "base64 with a NUL": ('"iVBO\\u0000"', "invalid_image"),
    "base64 of words": (json.dumps(b64(b"just some words, nothing to see")), "invalid_image"),
    "one base64 digit": ('"i"', "invalid_image"),
    "half an image": (json.dumps(b64(FILE[: len(FILE) // 2])), "invalid_image"),
    "its head alone": (json.dumps(b64(FILE[:8])), "invalid_image"),
    "a data URI without a comma": ('"data:image/png;base64"', "invalid_image"),
    "an empty data URI": ('"data:,"', "invalid_image"),
    "a data URI of no base64": ('"data:image/png;base64,###"', "invalid_image"),
    "SVG": ("\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>\"", "invalid_image"),
    "a file's address": ('"file:///etc/passwd"', "image_url_refused"),
    "ftp": ('{"url": "ftp://example.com/x.png"}', "image_url_refused"),
    "a script's address": ('"javascript:alert(1)"', "image_url_refused"),
    "no scheme": ('{"url": "example.com/x.png"}', "image_url_refused"),
    "no host": ('"http://"', "image_url_refused"),
    "a port that is none": ('"http://example.com:99999/"', "image_url_refused"),
    "this machine": ('"http://127.0.0.1/x.png"', "image_url_refused"),
    "this machine as a number": ('"http://2130706433/x.png"', "image_url_refused"),
    "this machine in IPv6": ('"http://[::1]/x.png"', "image_url_refused"),
    "half an IPv6 address": ('"http://[::1/x.png"', "image_url_refused"),
    "a private address": ('"http://10.0.0.1/x.png"', "image_url_refused"),
    "cloud metadata": ('"http://169.254.169.254/latest/meta-data"', "image_url_refused"),
    "a password": ('"http://user:secret@10.0.0.1/x.png"', "image_url_refused"),
    "a long address": (json.dumps("http://10.0.0.1/" + "x" * 20_000), "image_url_refused"),
}


def part(name: str, value: bytes, filename: str | None = None, boundary: bytes = b"edge") -> bytes:
    """One part of a multipart form."""
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'Content-Disposition: form-data; name="{name}"{file}'.encode()
    return b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


END = b"--edge--\r\n"
UPLOAD = part("image", FILE, "x.png")
_NESTED = b'Content-Disposition: form-data; name="image"\r\nContent-Type: multipart/mixed; boundary=inner\r\n\r\n'

# (the body, the field that is named, a part of the message); the boundary is `edge`
FORMS: dict[str, tuple[bytes, str | None, str]] = {
    "nothing": (b"", "image", "no file"),
    "no part": (END, "image", "no file"),
    "another boundary": (part("image", FILE, "x.png", b"brink") + b"--brink--\r\n", None, "form"),
    "words": (b"hello there", None, "form"),
    "a boundary and words": (b"--edge\r\nhello there", None, "form"),
    "JSON": (GOOD_CAPTION, None, "form"),
    "no name": (b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, None, "name"),
    "no disposition": (b"--edge\r\nContent-Type: image/png\r\n\r\nx\r\n" + END, None, "form"),
    "a header without a colon": (b"--edge\r\nContent-Disposition\r\n\r\nx\r\n" + END, None, "form"),
    "an image as text": (part("image", FILE) + END, "image", "no file"),
    "base64 as text": (part("image", IMAGE.encode()) + END, "image", "no file"),
    "an image as text beside a file": (UPLOAD + part("image", b"x") + END, "image", "unknown field"),
    "a file in another field": (part("file", FILE, "x.png") + END, "file", "no file"),
    "a file where a text is wanted": (UPLOAD + part("style", b"short", "style.txt") + END, "style", "no file"),
    "a file in a field without a name": (part("", FILE, "x.png") + END, "", "no file"),
    "a file in a field with a long name": (part("x" * 1000, FILE, "x.png") + END, "x" * 100 + "…", "no file"),
    "an unknown field": (UPLOAD + part("stile", b"short") + END, "stile", "did you mean 'style'"),
    "a field with a long name": (UPLOAD + part("x" * 1000, b"") + END, "x" * 100 + "…", "such a long name"),
    "a style that isn't there": (UPLOAD + part("style", b"poem") + END, "style", "detailed, short, tags"),
    "a style twice": (UPLOAD + part("style", b"short") + part("style", b"tags") + END, "style", "twice"),
    "a model twice": (UPLOAD + part("model", b"script") * 2 + END, "model", "twice"),
    "an empty prompt": (UPLOAD + part("prompt", b"") + END, "prompt", "at least 1"),
    "words for a number": (UPLOAD + part("max_tokens", b"many") + END, "max_tokens", "integer"),
    "no tokens": (UPLOAD + part("max_tokens", b"0") + END, "max_tokens", "greater"),
    "half a token": (UPLOAD + part("max_tokens", b"1.5") + END, "max_tokens", "integer"),
    "5,000 digits": (UPLOAD + part("max_tokens", b"9" * 5000) + END, "max_tokens", "integer"),
    "NaN": (UPLOAD + part("temperature", b"nan") + END, "temperature", "less"),
    "infinity": (UPLOAD + part("temperature", b"inf") + END, "temperature", "less"),
    "too hot": (UPLOAD + part("temperature", b"3") + END, "temperature", "less"),
    "a seed of 64 bits": (UPLOAD + part("seed", b"9223372036854775808") + END, "seed", "less"),
    "no truth": (UPLOAD + part("stream", b"perhaps") + END, "stream", "boolean"),
    "an empty stop": (UPLOAD + part("stop", b"") + END, "stop", "none of them empty"),
    "17 stops": (UPLOAD + part("stop", b"x") * 17 + END, "stop", "up to 16"),
    "200 fields": (UPLOAD + b"".join(part(f"f{n}", b"") for n in range(200)) + END, None, "Too many fields"),
    "25 files": (UPLOAD * 25 + END, None, "Too many files"),
    "a length in words that is none": (UPLOAD + part("length", b"huge") + END, "length", "very long"),
    "a length of no words": (UPLOAD + part("length", b"0") + END, "length", "greater"),
    "a length of many digits": (UPLOAD + part("length", b"9" * 5000) + END, "length", "integer"),
    "options for a model that has none": (UPLOAD + part("options", b"a") * 2 + END, "options", "have none"),
    "a format that isn't there": (UPLOAD + part("format", b"yaml") + END, "format", "'tags'"),
    "a format in broken JSON": (UPLOAD + part("format", b"{") + END, "format", "JSON"),
    "a guard that is a word": (UPLOAD + part("guard", b"yes") + END, "guard", "object"),
    "a guard of many retries": (UPLOAD + part("guard", b'{"retries": 9}') + END, "guard.retries", "less"),
    "a task of another model": (UPLOAD + part("task", b"od") + END, "task", "Florence-2"),
    "a form in a form": (b"--edge\r\n" + _NESTED + b"--inner\r\n\r\nx\r\n--inner--\r\n" + END, "image", "no file"),
}  # fmt: skip


def caption_cases() -> dict[str, Case]:
    """All of the above, by readable names."""
    cases = {
        f"caption's {name}: {value[:60]}": Case(
            f'{{"image": "{IMAGE}", "{name}": {value}}}'.encode(), name, path=CAPTIONS
        )
        for name, values in FIELDS.items()
        for value in values
    }
    cases |= {f"caption {body[:60]}": Case(body.encode(), param, says, path=CAPTIONS) for body, param, says in BODIES}
    cases |= {
        f"image: {name}": Case(f'{{"image": {image}}}'.encode(), "image", code=code, path=CAPTIONS)
        for name, (image, code) in IMAGES.items()
    }
    cases |= {f"caption with {name}": Case(body, None, "JSON", path=CAPTIONS) for name, body in NO_OBJECTS.items()}
    form = {"content-type": "multipart/form-data; boundary=edge"}
    for name, (content, param_of_form, says) in FORMS.items():
        cases[f"form: {name}"] = Case(content, param_of_form, says, path=CAPTIONS, headers=form)
    return cases | OTHERS


OTHERS: dict[str, Case] = {
    "four images": Case(json.dumps({"images": [IMAGE] * 4}).encode(), "images", code="too_many_images",
                          path=CAPTIONS),
    "four uploads": Case(UPLOAD * 4 + END, "images", code="too_many_images", path=CAPTIONS,
                         headers={"content-type": "multipart/form-data; boundary=edge"}),
    "a form without a boundary": Case(UPLOAD + END, None, "boundary", path=CAPTIONS,
                                      headers={"content-type": "multipart/form-data"}),
    "a form with an empty boundary": Case(UPLOAD + END, None, "form", path=CAPTIONS,
                                          headers={"content-type": "multipart/form-data; boundary="}),
    "a form with a long boundary": Case(UPLOAD + END, None, "form", path=CAPTIONS,
                                        headers={"content-type": "multipart/form-data; boundary=" + "x" * 5000}),
    "a form as JSON": Case(UPLOAD + END, None, "JSON", path=CAPTIONS, headers={"content-type": "application/json"}),
    "a form in chat": Case(UPLOAD + END, "Content-Type", "JSON", 415, "unsupported_media_type",
                           headers={"content-type": "multipart/form-data; boundary=edge"}),
    "an urlencoded form": Case(b"style=short", None, "JSON", path=CAPTIONS,
                               headers={"content-type": "application/x-www-form-urlencoded"}),
    "a bare image": Case(FILE, "Content-Type", "JSON", 415, "unsupported_media_type", path=CAPTIONS,
                           headers={"content-type": "image/png"}),
    "no content type": Case(FILE, None, "JSON", path=CAPTIONS, headers={"content-type": ""}),
    "styles of another model": Case(b"", "model", "did you mean 'script'", 404, "model_not_found", "GET",
                                    "/v1/captions/styles?model=scrip"),
    "styles asked with another word": Case(b"", "mode", "did you mean 'model'", method="GET",
                                           path="/v1/captions/styles?mode=script"),
    "another model's caption": Case(json.dumps({"image": IMAGE, "model": "scrip"}).encode(), "model",
                                    "did you mean 'script'", 404, "model_not_found", path=CAPTIONS),
    "an image in chat that is none": Case(json.dumps({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "what?"}, {"type": "image_url", "image_url": "AAAA"}]}]}).encode(),
        "messages[0].content[1].image_url", code="invalid_image"),
    "an image in chat from this machine": Case(json.dumps({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]}).encode(),
        "messages[0].content[0].image_url", code="image_url_refused"),
    "four images in chat": Case(json.dumps({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": IMAGE}] * 4}]}).encode(), "messages", code="too_many_images"),
}  # fmt: skip

_TOO_LARGE = b" " * (MAX_BODY_BYTES + 1)
_BAD_TIMES = ("", "soon", "0", "-1", "-0", "nan", "NaN", "inf", "-inf", "1e400", "1,5", "5s", "0x10", "30 30", "½")
_BAD_KEYS: dict[str, str | bytes] = {
    "nothing": "", "no key": "Bearer", "another scheme": "Basic c2EtYWxsOg==", "two spaces": "Bearer  sa-all",
    "a tab": "Bearer\tsa-all", "two keys": "Bearer sa-all sa-all", "a list": "Bearer sa-all, Bearer sa-all",
    "the key alone": "sa-all", "an unknown key": "Bearer sa-alm", "half a key": "Bearer sa-al",
    "the key in capitals": "Bearer SA-ALL", "a long key": "Bearer " + "x" * 600, "no ASCII": b"Bearer s\xc3\xa4",
    "quotes": 'Bearer "sa-all"', "a hash": "Bearer " + "0" * 64,
}  # fmt: skip
# TGI's routes have errors of their own shape.
_ALLOWED = {route.path: route.method for route in ROUTES if route.dialect is not TGI}


def header_cases() -> dict[str, Case]:
    """Requests whose heads are wrong, and whose bodies are good where they are read at all."""
    cases = {
        f"deadline {text!r}": Case(
            GOOD_CHAT, "X-Request-Timeout", headers={"x-request-timeout": text.encode("latin-1")}
        )
        for text in _BAD_TIMES
    }
    cases |= {
        f"key: {name} at {path}": Case(
            GOOD_CHAT, None, "", 401, "invalid_api_key", method, path, {"authorization": value}
        )
        for name, value in _BAD_KEYS.items()
        for method, path in (("POST", CHAT), ("GET", "/v1/models"))
    }
    for method, path in (("POST", CHAT), ("POST", CAPTIONS), ("GET", "/v1/models"), ("DELETE", "/v1/requests/a")):
        large = Case(b"", None, "headers", 431, "headers_too_large", method, path)
        cases[f"one large header at {path}"] = _with_headers(large, {"x-filler": "x" * MAX_HEADER_BYTES})
        cases[f"many headers at {path}"] = _with_headers(large, {f"x-{n}": "x" for n in range(3000)})
    for path in (CHAT, CAPTIONS):
        cases[f"a large body at {path}"] = Case(_TOO_LARGE, None, "bytes", 413, "body_too_large", path=path)
        cases[f"a key for another model at {path}"] = Case(
            GOOD_CHAT if path == CHAT else GOOD_CAPTION, "model", "this key", 403, "forbidden", path=path,
            headers=bearer("elsewhere"),
        )  # fmt: skip
    return cases


def _with_headers(case: Case, headers: dict[str, str]) -> Case:
    return Case(case.content, None, case.says, case.status, case.code, case.method, case.path, headers)


NO_ROUTES = (
    "/v1", "/v1/", "/v1/chat", "/v1/chat/completion", "/v1/completion", "/v1/embeddings", "/v2/models",
    "/V1/models", "/v1/caption", "/v1/model", "/v1/requests", "/v1/requests/", "/v1/requests/a/b", "/metrics",
    "/redoc", "/openapi.yaml", "/.env", "/v1/../etc/passwd", "/v1/%2e%2e/x", "/%00", "/%ff", "/v1/chat%2Fcompletion",
    "/" + "x" * 5000,
)  # fmt: skip


def route_cases() -> dict[str, Case]:
    """Paths and methods that aren't there."""
    cases = {
        f"{method} {path[:40]}": Case(b"", None, "no route", 404, "route_not_found", method, path)
        for path in NO_ROUTES
        for method in ("GET", "POST")
    }
    for path, allowed in _ALLOWED.items():
        plain = path.replace("{id:path}", "script").replace("{id}", "a")
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            if method != allowed:
                cases[f"{method} {plain}"] = Case(b"", None, f"use {allowed}" if allowed != "GET" else "GET", 405,
                                                  "method_not_allowed", method, plain)  # fmt: skip
    for name in ("nothing", "scrip", "script/a", "a/b", "%00", "%ff", "..%2fscript", "x" * 5000):
        cases[f"GET /v1/models/{name[:40]}"] = Case(
            b"", "model", "", 404, "model_not_found", "GET", f"/v1/models/{name}"
        )
    for request_id in ("a", "chatcmpl-a", "%00", "%ff", "%2e%2e", "a%20b", "x" * 5000, "*"):
        cases[f"DELETE /v1/requests/{request_id[:40]}"] = Case(
            b"", "id", "", 404, "request_not_found", "DELETE", f"/v1/requests/{request_id}"
        )
    return cases
