"""The file of API keys: YAML with the SHA-256 of each key and its rights, never a key itself.

Reads such a file, and adds an entry to its text. A secret may stand in it by mistake, so no error repeats what
the file holds: each names the line and the field. Who a request comes from is `keys.py`'s business.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from serve_app.config.applications import Name
from serve_app.errors import ConfigError
from serve_app.strict import Strict
from serve_app.yaml_text import YAML_ERRORS, repeated_key, values_of

DEFAULT_PRIORITY = 5  # the middle of 0 to 9, so that a key can be put before the others or behind them

_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # in C, because a reload holds up requests
_LONGEST_SHOWN_FIELD = 24  # characters, fewer than a key has: somebody may have put one where a field's name belongs
_DEEPEST = 8  # a list of models stands on the fourth level

Limit = Annotated[int | None, Field(ge=1)]


class KeyEntry(Strict):
    """One key: its owner and its rights. Limits are for a minute; a missing limit means none."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
    sha256: str
    models: tuple[Name, ...] | None = Field(None, min_length=1)  # left out: every model
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    images_per_minute: Limit = None
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9)
    admin: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_plain_key(cls, values: Any) -> Any:
        if isinstance(values, dict) and "key" in values:
            raise PydanticCustomError(
                "plain_key",
                "no key itself belongs in this file: put its sha256 there (`printf %s KEY | sha256sum`), or let "
                "`serve-app key` make a new key and its entry",
                {"place": ("key",)},
            )
        return values

    @field_validator("sha256")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        digits = value.lower()
        if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise ValueError("a SHA-256 is 64 hex digits: `serve-app key` makes a key and its entry")
        return digits

    @property
    def fields(self) -> dict[str, Any]:
        """The entry's plain values for the file, without defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)


class KeyFile(Strict):
    """The whole file."""

    keys: tuple[KeyEntry, ...] = ()

    @field_validator("keys", mode="before")
    @classmethod
    def _may_be_empty(cls, value: Any) -> Any:
        return () if value is None else value  # `keys:` with nothing below it

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        owners: dict[str, str] = {}
        names: set[str] = set()
        for index, entry in enumerate(self.keys):
            if entry.name in names:
                raise _repeated(
                    index, "name", f"the name '{entry.name}' is taken by an entry above it: choose another"
                )
            if entry.sha256 in owners:
                raise _repeated(index, "sha256", f"'{owners[entry.sha256]}' has the same key: make one for each")
            names.add(entry.name)
            owners[entry.sha256] = entry.name
        return self


def parse_keys(data: bytes) -> tuple[KeyEntry, ...]:
    """The entries of a file with this content; none where it is empty.

    Raises `ConfigError` with the line, the field and the fix, and never with anything that may be a secret.
    """
    try:
        text = data.decode("utf-8-sig")
        _refuse_nesting(text)
        root = yaml.compose(text, _Loader)
        if keys := repeated_key(root):  # so that no key loses its limits
            raise ConfigError(f"line {keys[1].start_mark.line + 1}: the field {_shown(keys[1].value)} is there twice")
        values = values_of(root)
    except YAML_ERRORS as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{place}this isn't valid YAML") from None  # its own words, like pydantic's, quote the file
    try:
        return KeyFile.model_validate({} if values is None else values).keys
    except ValidationError as exc:
        raise ConfigError(_sentence(exc.errors(include_url=False, include_input=False)[0], root)) from None


def with_entry(data: bytes, entry: KeyEntry) -> str:
    """A file's text with one more entry at its end, and everything else as it was, comments too.

    Raises `ConfigError` where the file is broken, the name is taken, or the text can't be added to as it is written.
    """
    before = parse_keys(data)
    if entry.name in {other.name for other in before}:
        raise ConfigError(f"the name '{entry.name}' is taken: choose another, or take that entry out first")
    text = data.decode("utf-8-sig")
    added = _added(text, yaml.compose(text, yaml.SafeLoader), entry)
    try:
        is_right = parse_keys(added.encode()) == (*before, entry)
    except ConfigError:
        is_right = False
    if not is_right:
        raise ConfigError(
            "this file isn't written as a plain list below `keys:`: write it so, or add the entry by hand"
        )
    return added


def entry_text(entry: KeyEntry) -> str:
    """An entry as it stands in the list below `keys:`."""
    return yaml.safe_dump([entry.fields], sort_keys=False)


def _added(text: str, root: yaml.Node | None, entry: KeyEntry) -> str:
    entries = _entries(root)
    if entries is None:
        head = text if isinstance(root, yaml.MappingNode) else f"{text.rstrip()}\nkeys:\n".lstrip("\n")
        return f"{head.rstrip()}\n{entry_text(entry)}"
    if entries.flow_style:
        flow = yaml.safe_dump(entry.fields, sort_keys=False, default_flow_style=True, width=10_000).strip()
        if not entries.value:
            end = entries.end_mark.index - 1  # where the closing bracket stands
            return f"{text[:end]}{flow}{text[end:]}"
        end = entries.value[-1].end_mark.index  # a comma that stands behind the last one is then behind ours
        return f"{text[:end]}, {flow}{text[end:]}"
    indent = " " * entries.start_mark.column
    return f"{text.rstrip()}\n" + "".join(indent + line for line in entry_text(entry).splitlines(keepends=True))


def _entries(root: yaml.Node | None) -> yaml.SequenceNode | None:
    fields = root.value if isinstance(root, yaml.MappingNode) else []
    return next(
        (value for key, value in fields if key.value == "keys" and isinstance(value, yaml.SequenceNode)), None
    )


def _refuse_nesting(text: str) -> None:
    """libyaml's bindings compose by recursion in C: a file of opening brackets would end the whole process."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ConfigError("values are nested deeper than a file of keys has any")


def _repeated(index: int, field: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("repeated", "{sentence}", {"sentence": sentence, "place": ("keys", index, field)})


def _sentence(error: ErrorDetails, root: yaml.Node | None) -> str:
    """What is wrong, after its line and field."""
    context = error.get("ctx", {})
    steps = (*error["loc"], *context.get("place", ()))
    sentence = error["msg"].removeprefix("Value error, ")
    if error["type"] == "unknown_field":
        steps = (*steps, context["field"])
        sentence = f"unknown field {_shown(context['field'])}{context['hint']}"
    elif error["type"] == "model_type":
        sentence = "the file is a mapping with a list `keys`, each of which has a name and a sha256"
    elif error["type"] == "tuple_type":
        sentence = "it is a list"
    path = ".".join(str(step) for step in error["loc"])
    return f"line {_line(root, steps)}: {path}: {sentence}" if path else f"line {_line(root, steps)}: {sentence}"


def _shown(field: str) -> str:
    return f"'{field}'" if len(field) <= _LONGEST_SHOWN_FIELD else "of a long name"


def _line(node: yaml.Node | None, steps: Sequence[int | str]) -> int:
    """The line (from 1) of the node that `steps` lead to, or of the last one on the way that exists."""
    line = node.start_mark.line if node else 0
    for step in steps:
        children: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            child = next(((key, value) for key, value in children if key.value == step), None)
        else:
            child = (children[step],) * 2 if isinstance(step, int) and step < len(children) else None
        if child is None:
            break
        line, node = child[0].start_mark.line, child[1]
    return line + 1
