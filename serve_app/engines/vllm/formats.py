"""Structured outputs of vLLM by llguidance, with the formats of the transformers engine, and JSON that ends in time.

An engine core of vLLM uses one backend for all requests, and none of its own handles both our formats and the tags of
tool calls. The backend here uses llguidance for formats and for the JSON of forced calls, and xgrammar for tags.
`plugin.py` installs it in the engine core. A backend that `structured_outputs_config` names is left alone.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1 import structured_output
from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from serve_app.engines.grammar.ending import Ending, EndingTokens
from serve_app.engines.grammar.source import LIMITS, schema_source

# Each of our grammars begins with the mark and `max_tokens`. Its second line keeps vLLM from checking it by xgrammar.
_MARK = "// serve_app: "
_NOT_FOR_XGRAMMAR = "%llguidance {}"
_JSON_RULE = "start: %json "


def install() -> None:
    """Replace vLLM's backends in this process. Call it before the engine core is built."""
    for name in ("XgrammarBackend", "GuidanceBackend"):
        assert hasattr(structured_output, name), f"this version of vLLM has no {name} to replace"
        setattr(structured_output, name, FormatBackend)


def is_by_llguidance(backend: str, tokenizer: Any) -> bool:
    """Whether llguidance handles formats. `backend` is the one in the engine's arguments."""
    return backend == "auto" and GuidanceBackend.is_tokenizer_supported(tokenizer)


def format_fields(source: str) -> dict[str, Any]:
    """The fields of vLLM's request that constrain an answer to this grammar."""
    grammar = f"{_MARK}0\n{_NOT_FOR_XGRAMMAR}\n{_as_lark(source)}"
    return {"structured_outputs": StructuredOutputsParams(grammar=grammar)}


def _as_lark(source: str) -> str:
    """llguidance's own JSON document has a schema or a Lark grammar; vLLM takes Lark."""
    if not source.startswith("{"):
        return source
    (grammar,) = json.loads(source)["grammars"]
    if (schema := grammar.get("json_schema")) is None:
        return str(grammar["lark_grammar"])
    return _JSON_RULE + json.dumps(schema).replace("::=", ":\\u003a=")  # vLLM takes `::=` for GBNF


def end_in_time(params: SamplingParams) -> None:
    """Tell the engine core, in the grammar's mark, how many tokens the answer may have."""
    outputs = params.structured_outputs
    if outputs is not None and outputs.grammar and outputs.grammar.startswith(_MARK):
        _, _, grammar = outputs.grammar.partition("\n")
        params.structured_outputs = StructuredOutputsParams(grammar=f"{_MARK}{params.max_tokens or 0}\n{grammar}")


@dataclass
class FormatGrammar(GuidanceGrammar):
    """One answer's position in its grammar. `ending` is set for JSON of at most `max_tokens`."""

    ending: Ending | None = None
    max_tokens: int = 0
    num_accepted: int = 0

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.num_accepted += len(tokens)
        return bool(super().accept_tokens(request_id, tokens))

    def rollback(self, num_tokens: int) -> None:
        self.num_accepted -= num_tokens
        super().rollback(num_tokens)

    def fill_bitmask(self, bitmask: torch.Tensor, idx: int) -> None:
        super().fill_bitmask(bitmask, idx)
        if self.ending is None or not self.ending.is_near(self.ll_matcher, self.max_tokens - self.num_accepted):
            return
        mask = bitmask[idx].view(torch.uint8)
        token = self.ending.closing(mask.numpy().tobytes())
        if token is not None:
            mask.zero_()
            mask[token // 8] = 1 << token % 8


@dataclass
class FormatBackend(XgrammarBackend):
    """xgrammar's backend, with llguidance for every grammar that llguidance can express."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._num_tokens = max(self.vocab_size, len(self.tokenizer))
        self._has_llguidance = is_by_llguidance(self.vllm_config.structured_outputs_config.backend, self.tokenizer)
        if self._has_llguidance:
            self._llguidance = from_tokenizer(self.tokenizer, self._num_tokens)
            self._ending_tokens = EndingTokens(self._llguidance)

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> Any:
        source, max_tokens = self._source(request_type, grammar_spec) if self._has_llguidance else (None, 0)
        if source is None:
            return super().compile_grammar(request_type, grammar_spec, stop_token_ids)
        matcher = LLMatcher(self._llguidance, source, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(f"llguidance refuses a grammar that was tried before: {matcher.get_error()[:200]}")
        ending = Ending(self._ending_tokens) if max_tokens and _JSON_RULE in source else None
        return FormatGrammar(matcher, self._llguidance, self.vocab_size, ending=ending, max_tokens=max_tokens)

    def allocate_token_bitmask(self, max_num_seqs: int) -> torch.Tensor:
        bitmask: torch.Tensor = super().allocate_token_bitmask(max_num_seqs)
        num_words = -(-self._num_tokens // 32)
        if bitmask.shape[1] >= num_words:
            return bitmask
        return torch.full((max_num_seqs, num_words), -1, dtype=torch.int32)

    def _source(self, request_type: StructuredOutputOptions, spec: str) -> tuple[str | None, int]:
        """llguidance's grammar and `max_tokens` (0 if unknown); no grammar for what xgrammar has to compile."""
        if request_type == StructuredOutputOptions.GRAMMAR and spec.startswith(_MARK):
            mark, _, grammar = spec.partition("\n")
            return grammar, int(mark.removeprefix(_MARK))
        if request_type == StructuredOutputOptions.JSON:
            try:
                return schema_source(json.loads(spec)), 0
            except ValueError:  # the schema of a tool that is only offered may be anything
                return None, 0
        return None, 0
