"""Bytes to a validated body, and every way that fails to one sentence that names the field."""

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from serve_app.errors import InvalidRequest
from serve_app.exchange import json_text
from serve_app.exchange.body import Body, shortened
from serve_app.exchange.unknown_fields import IgnoredFields, has_only_fields_of, without_unknown

_LONGEST_SENTENCE = 1000
# Values of `type` that pydantic puts into an error's path: of unions that are told apart by it.
_TAGS = frozenset({"text", "image_url", "refusal", "json_object", "json_schema", "json", "regex"})
_OBJECT_TYPES = frozenset({"model_type", "dict_type", "model_attributes_type"})

B = TypeVar("B", bound=Body)


def parse_json(data: bytes, body: type[B], ignored: IgnoredFields | None = None) -> B:
    """The validated body. Numbers in strings, NaN and invalid UTF-8 are refused. Raises `InvalidRequest`."""
    return validate(parse_object(data), body, strict=True, ignored=ignored)


def parse_object(data: bytes) -> dict[str, Any]:
    """A body that isn't validated yet. Raises `InvalidRequest`, as for NaN and invalid UTF-8."""
    values = json_text.parse(data)
    if not isinstance(values, dict):
        raise InvalidRequest('the body must be a JSON object like {"model": …}')
    return values


def validate(values: dict[str, Any], body: type[B], *, strict: bool, ignored: IgnoredFields | None = None) -> B:
    """`values` as a `body`. Raises `InvalidRequest` naming the first field at fault and what it takes.

    The names of fields that are ignored are added to `ignored`.
    """
    if has_only_fields_of(body, values):  # many clients send `logit_bias: null` and the like: one look less
        try:
            return body.model_validate(values, strict=strict)
        except ValidationError:  # perhaps only because of fields further down that may be left out
            pass
    values = without_unknown(values, body, IgnoredFields() if ignored is None else ignored)
    try:
        return body.model_validate(values, strict=strict)
    except ValidationError as exc:
        raise _as_invalid_request(exc.errors(include_url=False, include_input=False)[0], values) from exc


def _as_invalid_request(error: ErrorDetails, values: dict[str, Any]) -> InvalidRequest:
    path = ""
    for step in (*_steps(error, values), *_field_at_fault(error)):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    if error["type"] in ("missing", "union_tag_not_found"):
        return InvalidRequest(f"{path} is missing: the request needs it", path)
    sentence = _sentence(error)
    return InvalidRequest(f"{path}: {sentence}" if path else sentence, path or None)


def _steps(error: ErrorDetails, values: Any) -> list[int | str]:
    """The way to the value at fault, in the client's spelling: pydantic puts names of our types in between."""
    steps: list[int | str] = []
    tagged = None
    for step in error["loc"]:
        if isinstance(values, dict) and values is not tagged and step in _TAGS and values.get("type") == step:
            tagged = values
        elif step in values if isinstance(values, dict) else isinstance(values, list) and isinstance(step, int):
            values = values[step]
            steps.append(step if isinstance(step, int) else shortened(step))
    return [*steps, error["loc"][-1]] if error["type"] == "missing" else steps


def _sentence(error: ErrorDetails) -> str:
    if error["type"] in _OBJECT_TYPES:
        return "Input should be a JSON object"
    if error["type"] == "too_long":
        return f"{error['ctx']['field_type']} should have at most {error['ctx']['max_length']} items: send fewer"
    if error["type"] == "union_tag_invalid":
        return f"Input should be one of {error['ctx']['expected_tags']}"
    return shortened(error["msg"].removeprefix("Value error, "), _LONGEST_SENTENCE)


def _field_at_fault(error: ErrorDetails) -> tuple[str, ...]:
    """The field that an error about a whole object names."""
    context = error.get("ctx", {})
    if "discriminator" in context:
        return (context["discriminator"].strip("'"),)
    return (context["field"],) if isinstance(context.get("field"), str) else ()
