"""What an output format may be, for every engine: bounded in size and depth, and well formed.

Formats come from strangers and are compiled by libraries in C++ and Rust, so whatever makes those slow or deep is
refused before. Knows no engine.
"""

import json
import re
from typing import Any

from serve_app.messages import OutputFormat

MAX_SPEC_BYTES = 65_536
MAX_GRAMMAR_BYTES = 16_384  # it is translated by Python code before a library compiles it
MAX_DEPTH = 64
_NOT_REGULAR = {
    "(?=": "a look-ahead", "(?!": "a look-ahead", "(?<=": "a look-behind", "(?<!": "a look-behind",
    "\\b": "a word's edge", "\\B": "a word's edge", "\\c": "a control character's letter", "\\k": "a back-reference",
} | {f"\\{number}": "a back-reference" for number in range(1, 10)}  # fmt: skip
_PATTERN_TOKEN = re.compile(r"\\.|\[|\]|\(\?<?[=!]", re.DOTALL)


def check_output_format(output_format: OutputFormat) -> None:
    """Raise `ValueError` with the reason why no engine should see this format."""
    spec = output_format.spec
    num_bytes = len(spec.encode(errors="replace"))
    if num_bytes > MAX_SPEC_BYTES:
        raise ValueError(f"it has {num_bytes:,} bytes as JSON or text: at most {MAX_SPEC_BYTES:,} are allowed")
    if output_format.kind == "grammar" and num_bytes > MAX_GRAMMAR_BYTES:
        raise ValueError(f"the grammar has {num_bytes:,} bytes: at most {MAX_GRAMMAR_BYTES:,} are allowed")
    if output_format.kind == "choice":
        choices = _json(spec)
        if (
            not isinstance(choices, list)
            or not choices
            or not all(isinstance(choice, str) and choice for choice in choices)
        ):
            raise ValueError("choices are a list of texts, none empty")
    elif output_format.kind == "json_schema":
        _check_schema(spec)
    elif output_format.kind == "regex":
        check_pattern(spec)


def _check_schema(spec: str) -> None:
    """Raise `ValueError` unless this is a JSON object nested at most `MAX_DEPTH` deep."""
    schema = _json(spec)
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    check_depth(schema)


def check_depth(value: Any) -> None:
    """Raise `ValueError` where these values of JSON are nested more than `MAX_DEPTH` deep."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def check_text_depth(document: str) -> None:
    """The same of JSON's text, or of a text that should be JSON and may not be: that is for others to refuse."""
    if document.count("[") + document.count("{") <= MAX_DEPTH:
        return
    try:
        value = json.loads(document)
    except RecursionError as exc:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from exc
    except ValueError:
        return
    check_depth(value)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _json(spec: str) -> Any:
    try:
        return json.loads(spec, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise ValueError("it is no JSON that can be read") from exc


def _refuse(constant: str) -> Any:
    """NaN and the infinities, which Python reads and writes and JSON doesn't have."""
    raise ValueError(f"{constant} is no JSON")


def check_pattern(pattern: str) -> None:
    """Raise `ValueError` for what no automaton knows."""
    is_in_class = False
    for token in _PATTERN_TOKEN.findall(pattern):
        if token in ("[", "]"):
            is_in_class = token == "["
        elif token in _NOT_REGULAR and not is_in_class:
            raise ValueError(f"no answer can be held to {_NOT_REGULAR[token]}, '{token}': write it without")
