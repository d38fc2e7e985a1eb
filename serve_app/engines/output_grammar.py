"""Holds an answer to a JSON schema, a regular expression or a choice, through llguidance's token masks.

Schemas and expressions come from strangers, so a grammar is first compiled in a
short-lived process with little memory and time (`grammar_trial.py`): llguidance has limits of its own, and schemas
that step around them (`minItems: 100000000`). Masks later cost at most some 20 ms each, by its limits.
"""

import json
import logging
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.hf import from_tokenizer

from serve_app.engines import grammar_trial
from serve_app.errors import InvalidRequest
from serve_app.messages import OutputFormat
from serve_app.output_format import check_output_format

logger = logging.getLogger(__name__)

_NUM_KEPT = 64
_TOO_COMPLEX = "it is too complex or contradicts itself"  # where llguidance has no sentence that helps
_EMPTY_LINES = re.compile(r"\n\s*\n")
_BITS = torch.arange(8, dtype=torch.uint8)
_TRIAL_TIMEOUT_S = 10.0  # its own limit is on CPU seconds; this one is for a machine that gives it none
# Whitespace is free as people write it, yet bounded: a small model can repeat it for ever.
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}", "coerce_one_of": True, "lenient": False}


class Grammar:
    """One answer's place in its grammar. `error` says why the grammar can't go on; it is empty while it can."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        return _first_line(self._matcher.get_error())

    def allowed(self, num_tokens: int) -> torch.Tensor:
        """The tokens that may come next, as booleans of shape (num_tokens,); all of them after an error."""
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (words[:, None] >> _BITS) & 1  # the token of the lowest number in the lowest bit
        known = bits.flatten()[:num_tokens].bool()
        is_allowed = torch.nn.functional.pad(known, (0, num_tokens - len(known)))
        return is_allowed if is_allowed.any() else torch.ones_like(is_allowed)

    def take(self, token: int) -> None:
        """Note the answer's next token."""
        self._matcher.consume_token(token)

    def fresh(self) -> "Grammar":
        """The same grammar at its beginning, to be walked apart from this one."""
        return Grammar(self._matcher.deep_copy())


class GrammarCompiler:
    """Compiles output formats for one model's tokenizer and keeps the latest. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        """Raises `ValueError` where llguidance can't read the tokenizer (it wants a fast one)."""
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, eos_token=sorted(eos_ids) or None)
        self._kept: OrderedDict[OutputFormat, Grammar | str] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, output_format: OutputFormat) -> Grammar:
        """A grammar at its beginning. Takes up to seconds: call it in a thread. Raises `InvalidRequest`."""
        with self._lock:
            known = self._kept.get(output_format)
        if known is None:
            known = self._compiled(output_format)
            with self._lock:
                self._kept[output_format] = known
                if len(self._kept) > _NUM_KEPT:
                    self._kept.popitem(last=False)
        if isinstance(known, str):
            raise _refusal(known)
        return known.fresh()

    def _compiled(self, output_format: OutputFormat) -> Grammar | str:
        """The grammar, or why there is none."""
        source = _source(output_format)
        if reason := _tried(source):
            return reason
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LLParserLimits(**grammar_trial.LIMITS))
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()  # some limits show with the first mask only
        return _first_line(matcher.get_error()) or Grammar(matcher)


def _source(output_format: OutputFormat) -> str:
    """The format in llguidance's own language. Raises `InvalidRequest`."""
    try:
        check_output_format(output_format)
        return _in_llguidance(output_format)
    except ValueError as exc:
        raise _refusal(_first_line(str(exc))) from exc


def _in_llguidance(output_format: OutputFormat) -> str:
    spec = output_format.spec
    if output_format.kind == "regex":
        return LLMatcher.grammar_from_regex(spec)
    if output_format.kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in json.loads(spec))
        return LLMatcher.grammar_from_lark(f"start: {choices}")
    if output_format.kind == "grammar":
        return LLMatcher.grammar_from_lark(_as_lark(spec))
    schema = {"type": "object"} if output_format.kind == "json_object" else json.loads(spec)
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)


def _as_lark(grammar: str) -> str:
    """Raises `ValueError` where it is neither Lark nor GBNF."""
    try:
        return any_to_lark(_EMPTY_LINES.sub("\n", grammar))  # they cost it time squared
    except Exception as exc:  # llguidance raises bare ones for what it can't read
        raise ValueError(f"the grammar is neither GBNF nor Lark ({_first_line(str(exc))})") from exc


def _tried(source: str) -> str:
    """Compile it in a process that may die of it; why it can't be used, or nothing."""
    command = [sys.executable, "-P", grammar_trial.__file__]
    try:
        trial = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return _TOO_COMPLEX
    if trial.returncode == 0:
        return _first_line(trial.stdout.decode(errors="replace"))
    logger.warning("a grammar's trial ended with %d", trial.returncode)  # its words could quote the client's
    return _TOO_COMPLEX


def _first_line(error: str) -> str:
    line = error.strip().split("\n")[0]
    return _TOO_COMPLEX if line.startswith(("panic", "NoExtension")) else line[:200]


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"this response_format can't be used: {reason}", "response_format")
