"""Unknown fields of bodies: which are dropped, which refused, and by which name."""

from typing import Any

import pytest

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.errors import InvalidRequest
from serve_app.exchange.unknown_fields import MAX_FIELDS, IgnoredFields
from serve_app.exchange.validation import validate

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        validate({"messages": [USER], **fields}, ChatBody, strict=True)
    return caught.value.message, caught.value.param


def _ignored(**fields: Any) -> IgnoredFields:
    ignored = IgnoredFields()
    validate({"messages": [{**USER, **fields}]}, ChatBody, strict=True, ignored=ignored)
    return ignored


def test_a_null_under_a_python_name_is_unknown() -> None:
    message, param = _refusal(structured_outputs={"regex": "a", "json_": None})
    assert param == "structured_outputs.json_"
    assert "unknown field 'json_'" in message
    _, param = _refusal(response_format={"type": "json_object", "schema_": None})
    assert param == "response_format.schema_"


def test_a_null_under_any_other_name_changes_nothing() -> None:
    values = {"messages": [USER], "structured_outputs": {"regex": "a", "json": None, "other": None}}
    assert validate(values, ChatBody, strict=True).structured_outputs is not None


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("stream_options", [{"a": 1}], "Input should be a JSON object"),
        ("structured_outputs", [[{"a": 1}]], "Input should be a JSON object"),
        ("tool_choice", [{"a": 1}], "Input should be a valid string"),
        ("messages", {"a": 1}, "Input should be a valid list"),
        ("tools", {"a": 1}, "Input should be a valid list"),
    ],
)
def test_a_list_in_an_objects_place_is_refused_itself(field: str, value: Any, sentence: str) -> None:
    assert _refusal(**{field: value}) == (f"{field}: {sentence}", field)


def test_a_misspelt_type_is_named() -> None:
    message, param = _refusal(tools=[{"typ": "function", "function": TOOL["function"]}])
    assert (message, param) == ("tools[0].typ: unknown field 'typ': did you mean 'type'?", "tools[0].typ")


def test_a_long_name_is_left_out_of_the_header() -> None:
    assert _ignored(**{"\U0001f600" * 100: 1}).header == "..."
    assert _ignored(zzz=1, **{"\U0001f600" * 100: 1}).header == "zzz, ..."
    assert _ignored(zzz=1, qqq=1).header == "zzz, qqq"


def test_a_message_may_have_many_fields_that_say_nothing() -> None:
    assert not _ignored(**{f"u{number}": None for number in range(MAX_FIELDS + 1)})
    _, param = _refusal(**{f"u{number}": None for number in range(MAX_FIELDS + 1)})
    assert param is None


def test_neutral_fields_at_the_top_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = 0
    validate_body = ChatBody.model_validate

    def counted(*args: Any, **options: Any) -> ChatBody:
        nonlocal num_calls
        num_calls += 1
        return validate_body(*args, **options)

    monkeypatch.setattr(ChatBody, "model_validate", counted)
    values = {"messages": [USER], "frequency_penalty": 0, "n": 1, "user": "x", "logit_bias": None, "best_of": 1}
    validate(values, ChatBody, strict=True)
    assert num_calls == 1
