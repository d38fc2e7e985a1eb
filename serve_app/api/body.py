"""Request bodies: bytes to a validated model, and every way that fails to one sentence that names the field."""

from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from serve_app.errors import InvalidRequest
from serve_app.strict import Strict


class Body(Strict):
    """Base of every request body and of every object in one.

    `neutral` are the dialect's fields that this service doesn't have, each with the values that change nothing:
    those are dropped, any other value is refused.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")  # runs before the check for unknown fields, which the base class defines
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for field in values.keys() & cls.neutral.keys():
            if values[field] not in cls.neutral[field]:
                sentence = "{field} isn't supported here: leave it out"
                raise PydanticCustomError("unsupported_field", sentence, {"field": field})
        return {field: value for field, value in values.items() if field not in cls.neutral}


B = TypeVar("B", bound=Body)


def parse_json(data: bytes, body: type[B]) -> B:
    """The validated body. Numbers in strings, NaN and invalid UTF-8 are refused. Raises `InvalidRequest`."""
    try:
        values = from_json(data, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidRequest(f"the body isn't valid JSON: {exc}") from exc
    if not isinstance(values, dict):
        raise InvalidRequest('the body must be a JSON object like {"model": …}')
    return validate(values, body, strict=True)


def validate(values: dict[str, Any], body: type[B], *, strict: bool) -> B:
    """`values` as a `body`. Raises `InvalidRequest` naming the first field at fault and what it takes."""
    try:
        return body.model_validate(values, strict=strict)
    except ValidationError as exc:
        raise _as_invalid_request(exc.errors(include_url=False, include_input=False)[0]) from exc


def _as_invalid_request(error: ErrorDetails) -> InvalidRequest:
    path = ""
    for step in (*error["loc"], *_field_at_fault(error)):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    sentence = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return InvalidRequest(f"{path} is missing: the request needs it", path)
    return InvalidRequest(f"{path}: {sentence}" if path else sentence, path or None)


def _field_at_fault(error: ErrorDetails) -> tuple[str, ...]:
    """The field that an error about a whole object names."""
    field = error.get("ctx", {}).get("field")
    return (field,) if isinstance(field, str) else ()
