"""An output format as llguidance's grammar, for every engine; what can't be one is refused, in words.

Formats come from strangers, so a grammar is first compiled in a short-lived process with little memory and time
(`grammar_trial.py`): llguidance has limits of its own, and schemas that step around them (`minItems: 100000000`).
Masks later cost at most some 20 ms each, by its limits.
"""

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from serve_app.engines.grammar import trial as grammar_trial
from serve_app.engines.grammar.schemas.kept import kept_schema
from serve_app.errors import InvalidRequest, Overloaded
from serve_app.messages import OutputFormat
from serve_app.output_format import check_output_format

logger = logging.getLogger(__name__)

LIMITS = LLParserLimits(**grammar_trial.LIMITS)
_Made = TypeVar("_Made")
_NUM_KEPT = 64
_TOO_COMPLEX = "it is too complex or contradicts itself"  # where llguidance has no sentence that helps
_EMPTY_LINES = re.compile(r"\n\s*\n")
_ENDED_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # its own limits send others
_TRIAL_TIMEOUT_S = 10.0  # its own limit is on CPU seconds; this one is for a machine that gives it none
# As `json.dumps` writes it, or without blanks: a small model can write more of them for ever.
_JSON_OPTIONS: Any = {
    "whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False,
    "coerce_one_of": True,  # only those come to it that exclude each other
}  # fmt: skip


def grammar_source(output_format: OutputFormat) -> str:
    """The format in llguidance's own language. Raises `InvalidRequest`."""
    try:
        check_output_format(output_format)
        return _in_llguidance(output_format)
    except ValueError as exc:
        raise refusal(first_line(str(exc))) from exc


def schema_source(schema: dict[str, Any]) -> str:
    """The grammar of compact JSON that fits the schema, which is changed. Raises `ValueError` naming a keyword."""
    return LLMatcher.grammar_from_json_schema(kept_schema(schema), overrides=_JSON_OPTIONS)


def is_json(source: str) -> bool:
    """Whether the grammar is a schema's."""
    return source.startswith("{") and json.loads(source)["grammars"][0].get("json_schema") is not None


def _in_llguidance(output_format: OutputFormat) -> str:
    spec = output_format.spec
    if output_format.kind == "regex":
        return LLMatcher.grammar_from_regex(spec)
    if output_format.kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in json.loads(spec))
        return LLMatcher.grammar_from_lark(f"start: {choices}")
    if output_format.kind == "grammar":
        return LLMatcher.grammar_from_lark(_as_lark(spec))
    return schema_source({"type": "object"} if output_format.kind == "json_object" else json.loads(spec))


def _as_lark(grammar: str) -> str:
    """Raises `ValueError` where it is neither Lark nor GBNF."""
    try:
        return any_to_lark(_EMPTY_LINES.sub("\n", grammar))  # they cost it time squared
    except Exception as exc:  # llguidance raises bare ones for what it can't read
        raise ValueError(f"the grammar is neither GBNF nor Lark ({first_line(str(exc))})") from exc


def tried(source: str) -> str:
    """Compile it in a process that may die of it; why it can't be used, or nothing.

    Raises `Overloaded` where the machine had no time or room for that, which says nothing about the grammar.
    """
    command = [sys.executable, "-P", grammar_trial.__file__]
    try:
        trial = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_TRIAL_TIMEOUT_S)
    except (subprocess.TimeoutExpired, OSError) as exc:
        logger.warning("a grammar's trial got no time or no process: %s", type(exc).__name__)
        raise _not_tried() from exc
    if trial.returncode == 0:
        return first_line(trial.stdout.decode(errors="replace"))
    logger.warning("a grammar's trial ended with %d", trial.returncode)  # its words could quote the client's
    if -trial.returncode in _ENDED_BY_OTHERS:
        raise _not_tried()
    return _TOO_COMPLEX


def _not_tried() -> Overloaded:
    return Overloaded("this response_format couldn't be looked at in time: retry later", None, 2.0)


def first_line(error: str) -> str:
    line, *others = error.strip().split("\n")
    if "regex parse error" in line or line.startswith("lookarounds not supported"):
        why = next((other.removeprefix("error: ") for other in others if other.startswith("error: ")), "")
        field = "" if "(in regex)" in line else "pattern: "  # a schema's keyword
        sentence = "no answer can be held to this regular expression"
        return f"{field}{sentence}{f' ({why[:100]})' if why else ''}: write it in simpler words"
    return _TOO_COMPLEX if line.startswith(("panic", "NoExtension")) else line[:200]


def refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"this response_format can't be used: {reason}", "response_format")


class KeptFormats(Generic[_Made]):
    """What was made of the latest formats, or why nothing could be. Safe to use from several threads."""

    def __init__(self, make: Callable[[str], "_Made | str"]) -> None:
        """`make` takes a grammar that was tried; a text that it returns is why it can't be used."""
        self._make = make
        self._kept: OrderedDict[OutputFormat, _Made | str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, output_format: OutputFormat) -> _Made:
        """Takes up to seconds: call it in a thread. Raises `InvalidRequest`, and `Overloaded` as `tried`."""
        with self._lock:
            made = self._kept.get(output_format)
        if made is None:
            source = grammar_source(output_format)
            made = tried(source) or self._make(source)
            with self._lock:
                self._kept[output_format] = made
                if len(self._kept) > _NUM_KEPT:
                    self._kept.popitem(last=False)
        if isinstance(made, str):
            raise refusal(made)
        return made
