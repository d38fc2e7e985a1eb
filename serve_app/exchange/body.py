"""Request bodies: bytes to a validated model, and every way that fails to one sentence that names the field."""

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from serve_app.errors import InvalidRequest
from serve_app.exchange import json_text
from serve_app.strict import Strict

LONGEST_FIELD = 100  # characters of a client's own names that are looked at, and shown
_LONGEST_SENTENCE = 1000
MAX_FIELDS = 256  # of one object: more than any dialect has, neutral ones among them
MAX_TEXT_CHARACTERS = 16_000_000  # contexts of millions of tokens take as much
MAX_LABEL_CHARACTERS = 65_536
# Of unions that are told apart by `type`.
_TAGS = frozenset({"text", "image_url", "refusal", "json_object", "json_schema", "json", "regex"})
_OBJECT_TYPES = frozenset({"model_type", "dict_type", "model_attributes_type"})


LongText = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]  # what a model reads; its context bounds it further
# Ids, names and descriptions: some clients put what they must remember, such as signatures, into the ids of calls.
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]


class Body(Strict):
    """Base of every request body and of every object in one.

    `neutral` are the dialect's fields that this service doesn't have, each with the values that change nothing:
    those are dropped, any other value is refused. A null changes nothing in any field.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")  # runs before the check for unknown fields, which the base class defines
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise ValueError(f"an object has at most {MAX_FIELDS} fields, and this one has {len(values)}")
        for field in values:
            if len(field) > LONGEST_FIELD:  # before it is compared with every field there is
                raise wrong(shortened(field), "there is no field with such a long name")
        for field in values.keys() & cls.neutral.keys():
            if values[field] is not None and values[field] not in cls.neutral[field]:
                raise wrong(field, f"{field} isn't supported here: leave it out")
        return {
            field: value
            for field, value in values.items()
            if field not in cls.neutral and (value is not None or field in cls.model_fields)
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the neutral fields, for the OpenAPI page."""
        told = handler(schema)
        fields = handler.resolve_ref_schema(told).setdefault("properties", {})
        for name, values in cls.neutral.items():
            fields[name] = {
                "enum": [None, *(value for value in values if value is not None)],
                "description": "accepted, and without effect",
            }
        return told


def _as_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_as_whole)]  # JSON has one kind of number: 100.0 is 100

B = TypeVar("B", bound=Body)


def wrong(field: str, sentence: str) -> PydanticCustomError:
    """For a validator that sees a whole object to raise: the field at fault, and what is wrong with it."""
    return PydanticCustomError("wrong_field", "{sentence}", {"sentence": sentence, "field": field})


def parse_json(data: bytes, body: type[B], ignored: Any = None) -> B:
    """The validated body. Numbers in strings, NaN and invalid UTF-8 are refused. Raises `InvalidRequest`.

    `ignored` takes the names of what is read over in it.
    """
    return validate(parse_object(data), body, strict=True, ignored=ignored)


def parse_object(data: bytes) -> dict[str, Any]:
    """A body that isn't validated yet. Raises `InvalidRequest`, as for NaN and invalid UTF-8."""
    values = json_text.parse(data)
    if not isinstance(values, dict):
        raise InvalidRequest('the body must be a JSON object like {"model": …}')
    return values


def validate(values: dict[str, Any], body: type[B], *, strict: bool, ignored: Any = None) -> B:
    """`values` as a `body`. Raises `InvalidRequest` naming the first field at fault and what it takes."""
    try:
        return body.model_validate(values, strict=strict, context=ignored)
    except ValidationError as exc:
        raise _as_invalid_request(exc.errors(include_url=False, include_input=False)[0], values) from exc


def _as_invalid_request(error: ErrorDetails, values: dict[str, Any]) -> InvalidRequest:
    path = ""
    for step in (*_steps(error, values), *_field_at_fault(error)):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    sentence = _sentence(error)
    if error["type"] in ("missing", "union_tag_not_found"):
        return InvalidRequest(f"{path} is missing: the request needs it", path)
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


def shortened(text: str, most: int = LONGEST_FIELD) -> str:
    """What is shown of a client's own words: `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"
