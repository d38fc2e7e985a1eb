"""The OpenAPI document as a page that people read: one HTML file, no script, nothing fetched from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { border-bottom: 1px solid #ddd } summary { cursor: pointer; padding: .3rem 0 }
code, summary b { font-family: ui-monospace, monospace } summary b { display: inline-block; min-width: 4.5rem }
table { border-collapse: collapse; margin: .5rem 0 1rem } td, th { border: 1px solid #ddd; padding: .2rem .6rem;
text-align: left; vertical-align: top }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd }
td, th, h2 { border-color: #444 } a { color: #8bf } }
"""
_NUM_CHOICES = 8  # of an enumeration, before it is cut


def page(document: Mapping[str, Any]) -> str:
    """Each route with its fields, and a table for each object that fields refer to."""
    about = document["info"]
    return "".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>{escape(about['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(about['title'])} {escape(about['version'])}</h1><p>{escape(about['description'])}",
            "<p>For programs: <a href=openapi.json>openapi.json</a> (OpenAPI 3.1).",
            *_routes(document),
            "<h2>Objects</h2>",
            *_objects(document["components"]["schemas"]),
            "</html>",
        )
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for tag in (tag["name"] for tag in document["tags"]):
        yield f"<h2>{escape(tag)}</h2>"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag in operation["tags"]:
                    yield from _route(method.upper(), path, operation)


def _route(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    if operation["parameters"]:
        yield "<table><tr><th>parameter<th>in<th>"
        for parameter in operation["parameters"]:
            name, place, description = parameter["name"], parameter["in"], parameter.get("description", "")
            yield f"<tr><td><code>{name}</code><td>{place}<td>{escape(description)}"
        yield "</table>"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, <code>{media_type}</code>: {_type(content['schema'])}"
    for media_type, content in operation["responses"]["200"]["content"].items():
        yield f"<p>Answer, <code>{media_type}</code>: {_type(content.get('x-event', content['schema']))}"
    yield "</details>"


def _objects(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"<details id='{name}'><summary><code>{name}</code></summary>"
        yield f"<p>{escape(schema.get('description', ''))}<table><tr><th>field<th>type<th>default"
        for field, about in schema.get("properties", {}).items():
            default = "required" if field in schema.get("required", ()) else about.get("default")
            shown = "" if default is None else escape(str(default))
            yield f"<tr><td><code>{escape(field)}</code><td>{_type(about)}<td>{shown}"
        yield "</table></details>"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in few words, as HTML: `integer, at least 1`, with links to objects."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"<a href='#{name}'>{name}</a>"
    for several, word in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if several in schema:
            return word.join(_type(choice) for choice in schema[several])
    if "enum" in schema or "const" in schema:
        choices = [escape(repr(choice)) for choice in schema.get("enum", [schema.get("const")])]
        return " or ".join(choices[:_NUM_CHOICES]) + (" …" if len(choices) > _NUM_CHOICES else "")
    types = schema.get("type", "anything")
    words = " or ".join(types) if isinstance(types, list) else str(types)
    if "items" in schema:
        words += f" of {_type(schema['items'])}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join([words, *(f"{word} {schema[key]:,}" for key, word in bounds.items() if key in schema)])
