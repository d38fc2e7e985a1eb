"""The HTTP app's own description as OpenAPI 3.1: the table of routes and the types in it, written as JSON schema."""

import inspect
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from serve_app import __version__
from serve_app.exchange.route import Route

_JSON, _EVENTS, _FORM, _HTML = "application/json", "text/event-stream", "multipart/form-data", "text/html"
_ABOUT_EVENTS = {"description": "Server-sent events; what the data of each is, but for a last [DONE], says x-event."}
Schemas = dict[Any, dict[str, Any]]


def document(routes: tuple[Route, ...], prefix: str) -> dict[str, Any]:
    """OpenAPI's document of these routes, which stand below `prefix`."""
    return {**_document(routes), "servers": [{"url": prefix or "/"}]}


@cache
def _document(routes: tuple[Route, ...]) -> dict[str, Any]:
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.shown_path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "serve_app",
            "version": __version__,
            "description": "Chat and image captions from many models behind one address.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(route.dialect.name for route in routes)],
    }


def _schemas(routes: tuple[Route, ...]) -> tuple[Schemas, dict[str, Any]]:
    """The schema of each type that the routes name, and the objects that these schemas refer to."""
    types = dict.fromkeys(
        named
        for route in routes
        for named in (route.body, route.form, route.answer, route.event, route.unready_answer, route.error)
        if named is not None
    )
    schemas, definitions = TypeAdapter.json_schemas(
        [(number, "validation", TypeAdapter[Any](named)) for number, named in enumerate(types)],
        ref_template="#/components/schemas/{model}",
    )
    components: dict[str, Any] = definitions["$defs"]
    for route in routes:
        if route.form is not None:
            components[route.form.__name__].pop("additionalProperties")  # the files stand beside the fields
    return {named: schemas[number, "validation"] for number, named in enumerate(types)}, components


def _or_error(route: Route, named: Any, schemas: Schemas) -> dict[str, Any]:
    """One of the type or an error."""
    schema = schemas[named]
    return {"anyOf": [*schema.get("anyOf", [schema]), schemas[route.error]]}


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    error = {"content": {_JSON: {"schema": schemas[route.error]}}}
    responses = {
        "200": {"description": "The answer.", "content": _answers(route, schemas)},
        "4XX": {"description": "The request is at fault, or has to wait; `message` says what to do.", **error},
        "5XX": {"description": "The service is at fault; the same request may pass later.", **error},
    }
    if route.unready_answer is not None:
        unready = {"description": "Not now; the same question may be answered otherwise later."}
        responses["503"] = unready | {"content": {_JSON: {"schema": _or_error(route, route.unready_answer, schemas)}}}
    name = route.shown_path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "root"
    operation: dict[str, Any] = {
        "operationId": f"{route.handler.__name__}_{route.method.lower()}_{name}",
        "summary": _summary(route),
        "tags": [route.dialect.name],
        "parameters": _parameters(route),
        "responses": responses,
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _contents(route, schemas)}
    return operation


def _summary(route: Route) -> str:
    first_paragraph = inspect.cleandoc(route.handler.__doc__ or "").partition("\n\n")[0]
    return " ".join(first_paragraph.split()).replace("`", "")


def _parameters(route: Route) -> list[dict[str, Any]]:
    text = {"schema": {"type": "string"}}
    in_path = [{"name": "id", "in": "path", "required": True, **text}] if "{id}" in route.shown_path else []
    return in_path + [
        {"name": parameter.name, "in": parameter.place, "description": parameter.description, **text}
        for parameter in route.parameters
    ]


def _contents(route: Route, schemas: Schemas) -> dict[str, Any]:
    contents: dict[str, Any] = {_JSON: {"schema": schemas[route.body]}}
    if route.form is not None:
        files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
        images = {"type": "object", "properties": {"image": files}, "required": ["image"]}
        contents[_FORM] = {"schema": {"allOf": [schemas[route.form], images]}}
    return contents


def _answers(route: Route, schemas: Schemas) -> dict[str, Any]:
    """By media type. OpenAPI 3.1 can't say what an event of a stream carries: `x-event`, an extension, does."""
    answers: dict[str, Any] = {}
    if route.answer is not None:
        answers[_HTML if route.answer is str else _JSON] = {"schema": schemas[route.answer]}
    if route.event is not None:
        answers[_EVENTS] = {"schema": _ABOUT_EVENTS, "x-event": _or_error(route, route.event, schemas)}
    return answers
