"""Parts of a chat request that hold its answer to a form: formats, and the tools that may be called.

Shapes follow https://platform.openai.com/docs/api-reference/chat, and vLLM's `structured_outputs`. What no engine
should compile is refused here, by name.
"""

import json
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from serve_app.exchange.body import Body, Label, Tolerant, wrong
from serve_app.messages import OutputFormat, Tool
from serve_app.output_format import MAX_GRAMMAR_BYTES, check_output_format

MAX_TOOLS = 128

JsonOrText = TypeVar("JsonOrText", bound=dict[str, Any] | str)


def _schema_format(schema: dict[str, Any] | None) -> OutputFormat:
    return OutputFormat("json_schema", json.dumps(schema, ensure_ascii=False))


def _json_format(schema: dict[str, Any] | str | None) -> OutputFormat:
    return OutputFormat("json_schema", schema) if isinstance(schema, str) else _schema_format(schema)


def tgi_format(schema: dict[str, Any] | str) -> OutputFormat:
    """As TGI reads a schema: what has `properties` is an object, also where nothing says so."""
    values = json.loads(schema) if isinstance(schema, str) else schema
    return _schema_format({"type": "object", **values} if "properties" in values else values)


def _usable(schema: JsonOrText) -> JsonOrText:
    check_output_format(_json_format(schema))
    return schema


def _usable_regex(pattern: str) -> str:
    check_output_format(OutputFormat("regex", pattern))
    return pattern


UsableSchema = Annotated[dict[str, Any], AfterValidator(_usable)]


class JsonSchema(Body):
    name: Label = "answer"
    description: Label | None = None
    schema_: UsableSchema = Field(default_factory=dict, alias="schema")
    strict: bool | None = None  # every schema binds here


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object, or one of a schema: `value` in TGI's words, `schema` in llama.cpp's."""

    type: Literal["json_object"]
    value: UsableSchema | None = None
    schema_: UsableSchema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _one_schema(self) -> Self:
        if self.value is not None and self.schema_ is not None:
            raise wrong("schema", "there is a value as well: send one of them")
        return self

    def output_format(self) -> OutputFormat:
        schema = self.value if self.schema_ is None else self.schema_
        return OutputFormat("json_object") if schema is None else tgi_format(schema)


class JsonSchemaFormat(Body):
    """`json_schema` is OpenAI's word, `value` TGI's for the same."""

    type: Literal["json_schema"]
    json_schema: JsonSchema | None = None
    value: JsonSchema | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> Self:
        if self.json_schema is None and self.value is None:
            raise wrong("json_schema", "it is missing: the request needs it")
        if self.json_schema is not None and self.value is not None:
            raise wrong("value", "there is a json_schema as well: send one of them")
        return self

    def output_format(self) -> OutputFormat:
        if self.value is not None:
            return tgi_format(self.value.schema_)
        assert self.json_schema is not None, "validated above"
        return _schema_format(self.json_schema.schema_)


class JsonGrammar(Body):
    """TGI's: `value` is the schema, or its text."""

    type: Literal["json"]
    value: Annotated[dict[str, Any] | str, AfterValidator(_usable)]

    def output_format(self) -> OutputFormat:
        return tgi_format(self.value)


class RegexGrammar(Body):
    type: Literal["regex"]
    value: Annotated[str, AfterValidator(_usable_regex)]

    def output_format(self) -> OutputFormat:
        return OutputFormat("regex", self.value)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | JsonGrammar | RegexGrammar, Field(discriminator="type")
]


class StructuredOutputs(Body):
    """vLLM's field for formats that OpenAI's `response_format` doesn't have: exactly one of the four."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = Field(None, min_length=1, max_length=1000)
    grammar: str | None = Field(None, min_length=1, max_length=MAX_GRAMMAR_BYTES)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        names = [name for name in ("json_", "regex", "choice", "grammar") if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError("takes exactly one of json, regex, choice and grammar")
        try:
            check_output_format(self.output_format())
        except ValueError as exc:
            raise wrong(names[0].rstrip("_"), str(exc)) from exc
        return self

    def output_format(self) -> OutputFormat:
        if self.regex is not None:
            return OutputFormat("regex", self.regex)
        if self.choice is not None:
            return OutputFormat("choice", json.dumps(self.choice, ensure_ascii=False))
        if self.grammar is not None:
            return OutputFormat("grammar", self.grammar)
        return _json_format(self.json_)


# Schemas that are made of other schemas; adding a type beside those isn't allowed.
_COMBINED = frozenset({"$ref", "anyOf", "oneOf", "allOf"})


class Function(Tolerant):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: Label | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _can_be_used(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and parameters.get("type", "object") != "object":
            raise ValueError("a function's arguments are an object: its schema's type must be object")
        if parameters:
            check_output_format(_schema_format(parameters))
        return parameters

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """Of an object, also where the client left that to be understood."""
        schema = self.parameters or {"properties": {}}
        return schema if _COMBINED & schema.keys() else {"type": "object", **schema}


class FunctionTool(Tolerant):
    type: Literal["function"]
    function: Function

    def tool(self, *, is_forced: bool) -> Tool:
        """`is_forced`: one of the tools must be called."""
        function = self.function
        return Tool(
            name=function.name,
            parameters=json.dumps(function.arguments_schema),
            description=function.description,
            is_strict=is_forced or bool(function.strict),
        )


class NamedFunction(Body):
    name: Label


class NamedToolChoice(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(Body):
    """Some of the tools: the model sees no others."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str:
    if isinstance(value, dict):
        return "some tools" if value.get("type") == "allowed_tools" else "a function"
    return "a word"


# Distinguished before validation, so that a mistake in an object is reported as the object's. A word may be a name.
ToolChoice = Annotated[
    Annotated[str, Field(max_length=64), Tag("a word")]
    | Annotated[NamedToolChoice, Tag("a function")]
    | Annotated[AllowedToolsChoice, Tag("some tools")],
    Discriminator(_kind_of_choice),
]
