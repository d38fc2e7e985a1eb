"""The lane's own description as OpenAPI 3.1, made of the very types that validate requests."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from serve_app import __version__
from serve_app.dialects.captions.body import CaptionBody, CaptionForm
from serve_app.dialects.captions.task import create_captions
from serve_app.dialects.openai.chat import create_chat_completion
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.openai.completions import create_completion
from serve_app.dialects.tgi.body import GenerateBody, TokenizeBody
from serve_app.dialects.tgi.hub_images import CaptionImageBody, FlatQuestionBody, QuestionBody
from serve_app.dialects.tgi.routes import TGI_ROUTES, generate, generate_either, generate_stream, invocations
from serve_app.dialects.tgi.tokens import chat_tokenize, tokenize
from serve_app.exchange.body import Body
from serve_app.exchange.exchange import Handler
from serve_app.ingress.openapi_answers import ANSWERS, reference

Routes = Iterable[tuple[str, str, Handler]]

_HUB = (GenerateBody, CaptionImageBody, QuestionBody, FlatQuestionBody)
_JSON, _EVENTS, _FORM = "application/json", "text/event-stream", "multipart/form-data"
_HTML = "text/html"
# What each handler reads: one of these, in JSON.
BODIES: Mapping[Handler, tuple[type[Body], ...]] = {
    create_chat_completion: (ChatBody,),
    create_completion: (CompletionBody,),
    create_captions: (CaptionBody,),
    generate: (GenerateBody,),
    generate_stream: (GenerateBody,),
    generate_either: _HUB,
    invocations: (*_HUB, ChatBody, CompletionBody),
    tokenize: (TokenizeBody,),
    chat_tokenize: (ChatBody,),
}
_FORMS: Mapping[Handler, type[Body]] = {create_captions: CaptionForm}
_ABOUT_EVENTS = {"description": "Server-sent events; what the data of each is, but for a last [DONE], says x-event."}
_HOSTED = ("Generations", "ImageAnswers")
# What each route answers, by the names of `ANSWERS`: one of these in JSON, and the events of a stream.
_WHOLE: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("POST", "/v1/chat/completions"): ("ChatCompletion",),
    ("POST", "/v1/completions"): ("Completion",),
    ("POST", "/v1/captions"): ("CaptionList",),
    ("GET", "/v1/captions/styles"): ("CaptionStyles",),
    ("GET", "/v1/models"): ("ModelList",),
    ("GET", "/v1/models/{id:path}"): ("Model",),
    ("DELETE", "/v1/requests/{id}"): ("CancelledRequest",),
    ("GET", "/health"): ("Health",),
    ("GET", "/ping"): ("Health",),
    ("GET", "/"): ("Health",),
    ("GET", "/ready"): ("Ready",),
    ("GET", "/openapi.json"): ("Document",),
    ("POST", "/"): _HOSTED,
    ("POST", "/generate"): ("Generation",),
    ("POST", "/invocations"): (*_HOSTED, "ChatCompletion", "Completion"),
    ("GET", "/info"): ("Info",),
    ("POST", "/tokenize"): ("Tokens",),
    ("POST", "/chat_tokenize"): ("ChatTokens",),
}
_STREAMED: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("ChatCompletionChunk",),
    "/v1/completions": ("CompletionChunk",),
    "/v1/captions": ("CaptionChunk", "Caption", "CaptionFailure"),
    "/": ("GenerationEvent",),
    "/generate_stream": ("GenerationEvent",),
    "/invocations": ("GenerationEvent", "ChatCompletionChunk", "CompletionChunk"),
}
_QUERIES = {
    "/v1/captions/styles": ("model", "the model that is asked about"),
    "/info": ("model", "the model that is asked about"),
    "/ready": ("all", "1 where every model must be ready"),
}
_TGI = frozenset((method, path) for method, path, _ in TGI_ROUTES)
_TGI_PATHS = frozenset({"/ping", *(path for _, path, _ in TGI_ROUTES)})


def document(routes: Routes, prefix: str) -> dict[str, Any]:
    """OpenAPI's document of these routes, which stand below `prefix`."""
    return {**_document(tuple(routes)), "servers": [{"url": prefix or "/"}]}


@cache
def _document(routes: tuple[tuple[str, str, Handler], ...]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes:
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = _operation(method, path, handler)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "serve_app",
            "version": __version__,
            "description": "Chat and image captions from many models behind one address.",
        },
        "paths": paths,
        "components": {
            "schemas": {**_body_schemas(), **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "tags": [{"name": name} for name in ("OpenAI", "captions", "TGI", "service")],
    }


def _operation(method: str, path: str, handler: Handler) -> dict[str, Any]:
    summary = inspect.cleandoc(handler.__doc__ or "").partition("\n\n")[0]
    is_tgi = (method, path) in _TGI
    error = {"content": {_JSON: _schema(("TgiError" if path in _TGI_PATHS else "Error",))}}
    operation: dict[str, Any] = {
        "operationId": f"{handler.__name__}_{method.lower()}_{path.strip('/').replace('/', '_') or 'root'}"
        .replace("{", "").replace("}", "").replace(":path", ""),
        "summary": _sentence(summary),
        "tags": [_tag(path, is_tgi)],
        "parameters": _parameters(path, is_tgi),
        "responses": {
            "200": {"description": "The answer.", "content": _answers(method, path)},
            "4XX": {"description": "The request is at fault, or has to wait; `message` says what to do.", **error},
            "5XX": {"description": "The service is at fault; the same request may pass later.", **error},
        },
    }  # fmt: skip
    if path == "/ready":
        not_ready = {"description": "Not now; the same question may be answered otherwise later."}
        operation["responses"]["503"] = not_ready | {"content": {_JSON: _schema(("Ready", "Error"))}}
    if bodies := BODIES.get(handler):
        operation["requestBody"] = {"required": True, "content": _contents(handler, bodies)}
    return operation


def _sentence(summary: str) -> str:
    """The docstring's first sentence, without the route that it begins with."""
    words = re.sub(r"^(`[A-Z]+ /[^`]*`[^`:;,]*[:;,] ?)+", "", " ".join(summary.split()))
    return words[:1].upper() + words[1:].replace("`", "")


def _tag(path: str, is_tgi: bool) -> str:
    if is_tgi:
        return "TGI"
    if path.startswith("/v1/captions"):
        return "captions"
    return "OpenAI" if path.startswith("/v1/") and not path.startswith("/v1/requests") else "service"


def _parameters(path: str, is_tgi: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{id" in path:
        found.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if path in _QUERIES:
        name, meaning = _QUERIES[path]
        found.append({"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}})
    if is_tgi:
        found.append({"name": "X-Model", "in": "header", "description": "the model, if not the default",
                      "schema": {"type": "string"}})  # fmt: skip
    return found


def _contents(handler: Handler, bodies: tuple[type[Body], ...]) -> dict[str, Any]:
    contents: dict[str, Any] = {_JSON: _schema([body.__name__ for body in bodies])}
    if form := _FORMS.get(handler):
        files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
        images = {"type": "object", "properties": {"image": files}, "required": ["image"]}
        contents[_FORM] = {"schema": {"allOf": [{"$ref": reference(form.__name__)}, images]}}
    return contents


def _answers(method: str, path: str) -> dict[str, Any]:
    """By media type. OpenAPI 3.1 has no word for what an event of a stream carries, so that it has one of ours."""
    answers: dict[str, Any] = {_HTML: {"schema": {"type": "string"}}} if path == "/docs" else {}
    if whole := _WHOLE.get((method, path)):
        answers[_JSON] = _schema(whole)
    if method == "POST" and (events := _STREAMED.get(path)):
        failure = "TgiError" if path in _TGI_PATHS else "Error"
        answers[_EVENTS] = {"schema": _ABOUT_EVENTS, "x-event": _schema((*events, failure))["schema"]}
    return answers


def _schema(names: Sequence[str]) -> dict[str, Any]:
    """One of these."""
    named = [{"$ref": reference(name)} for name in names]
    return {"schema": named[0] if len(named) == 1 else {"anyOf": named}}


def _body_schemas() -> dict[str, Any]:
    bodies = dict.fromkeys(body for read in BODIES.values() for body in read) | dict.fromkeys(_FORMS.values())
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=reference("{model}"))
    found: dict[str, Any] = schemas["$defs"]
    found[CaptionForm.__name__].pop("additionalProperties")  # the files stand beside the fields
    return found
