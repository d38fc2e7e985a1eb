"""The base of all request bodies, and types of fields that dialects share. Knows no single API."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

LONGEST_FIELD = 100  # characters of a client's own names that are looked at, and shown
MAX_TEXT_CHARACTERS = 16_000_000  # contexts of millions of tokens take as much
MAX_LABEL_CHARACTERS = 65_536

LongText = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]  # what a model reads; its context bounds it further
# Ids, names and descriptions. Some clients keep what they must remember, such as signatures, in the ids of calls.
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]
# JSON has one kind of number: 100.0 is 100.
Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]


class Body(BaseModel):
    """Base of every request body and of every object in one. Other fields than its own are refused.

    `neutral` are fields of the API that this service doesn't have, each with the values that change nothing: those
    are dropped, any other value is refused. A null changes nothing in any field. See `unknown_fields`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the neutral fields, for the OpenAPI page."""
        json_schema = handler(schema)
        properties = handler.resolve_ref_schema(json_schema).setdefault("properties", {})
        for name, values in cls.neutral.items():
            properties[name] = {
                "enum": [None, *(value for value in values if value is not None)],
                "description": "accepted, and without effect",
            }
        return json_schema


class Tolerant(Body):
    """Base of objects that clients send back as another service gave them: its unknown fields are ignored.

    The client gets their names in a header. Two kinds stay refused: what looks like a misspelt field of ours, and
    `misplaced` fields, which would ask for something at another place; `misplaced_hint` says where.
    """

    misplaced: ClassVar[frozenset[str]] = frozenset()
    misplaced_hint: ClassVar[str] = "a part of this type has none: send it in a part of its own"

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = super().__get_pydantic_json_schema__(schema, handler)
        handler.resolve_ref_schema(json_schema).pop("additionalProperties", None)
        return json_schema


def wrong(field: str, sentence: str) -> PydanticCustomError:
    """For a validator that sees a whole object to raise: the field at fault, and what is wrong with it."""
    return PydanticCustomError("wrong_field", "{sentence}", {"sentence": sentence, "field": field})


def shortened(text: str, most: int = LONGEST_FIELD) -> str:
    """What is shown of a client's own words: `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"
