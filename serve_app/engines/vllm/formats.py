"""vLLM's structured outputs by llguidance, as in the other engine: the same formats are kept, and end in time.

vLLM holds all requests of an engine core to one backend, which the first of them chooses, and of which none keeps
formats and the tags of tool calls alike. So the core gets one that does: llguidance's for formats and for the JSON of
forced calls, xgrammar's for tags. `vllm_plugin.py` puts it in its place there. A backend that
`structured_outputs_config` names is left alone.
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

# Each of our grammars begins with it, then the most tokens. The second line keeps vLLM from reading it by xgrammar.
_MARK = "// serve_app: "
_NOT_FOR_XGRAMMAR = "%llguidance {}"
_JSON_RULE = "start: %json "


def install() -> None:
    """Make it the backend of this process's engine core. Before that is built."""
    for name in ("XgrammarBackend", "GuidanceBackend"):
        assert hasattr(structured_output, name), f"vLLM has no {name} where this was written for"
        setattr(structured_output, name, FormatBackend)


def is_by_llguidance(backend: str, tokenizer: Any) -> bool:
    """Whether formats go to llguidance; `backend` is the one that the engine's arguments name."""
    return backend == "auto" and GuidanceBackend.is_tokenizer_supported(tokenizer)


def format_fields(source: str) -> dict[str, Any]:
    """The fields of vLLM's request that hold an answer to this grammar."""
    grammar = f"{_MARK}0\n{_NOT_FOR_XGRAMMAR}\n{_as_lark(source)}"
    return {"structured_outputs": StructuredOutputsParams(grammar=grammar)}


def _as_lark(source: str) -> str:
    """llguidance's own document holds a schema, or a grammar in Lark; vLLM takes Lark."""
    if not source.startswith("{"):
        return source
    (grammar,) = json.loads(source)["grammars"]
    if (schema := grammar.get("json_schema")) is None:
        return str(grammar["lark_grammar"])
    return _JSON_RULE + json.dumps(schema).replace("::=", ":\\u003a=")  # by which vLLM tells another notation


def end_in_time(params: SamplingParams) -> None:
    """Tell the engine core how many tokens the format has."""
    form = params.structured_outputs
    if form is not None and form.grammar and form.grammar.startswith(_MARK):
        _, _, grammar = form.grammar.partition("\n")
        params.structured_outputs = StructuredOutputsParams(grammar=f"{_MARK}{params.max_tokens or 0}\n{grammar}")


@dataclass
class FormatGrammar(GuidanceGrammar):
    """One answer's place in its grammar; `ending` where it is JSON of at most `max_tokens`."""

    ending: Ending | None = None
    max_tokens: int = 0
    num_taken: int = 0

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.num_taken += len(tokens)
        return bool(super().accept_tokens(request_id, tokens))

    def rollback(self, num_tokens: int) -> None:
        self.num_taken -= num_tokens
        super().rollback(num_tokens)

    def fill_bitmask(self, bitmask: torch.Tensor, idx: int) -> None:
        super().fill_bitmask(bitmask, idx)
        if self.ending is None or not self.ending.is_near(self.ll_matcher, self.max_tokens - self.num_taken):
            return
        mask = bitmask[idx].view(torch.uint8)
        token = self.ending.closing(mask.numpy().tobytes())
        if token is not None:
            mask.zero_()
            mask[token // 8] = 1 << token % 8


@dataclass
class FormatBackend(XgrammarBackend):
    """xgrammar's backend, and llguidance for all that it has words for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._num_tokens = max(self.vocab_size, len(self.tokenizer))
        self._is_used = is_by_llguidance(self.vllm_config.structured_outputs_config.backend, self.tokenizer)
        if self._is_used:
            self._llguidance = from_tokenizer(self.tokenizer, self._num_tokens)
            self._ending_tokens = EndingTokens(self._llguidance)

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> Any:
        source, max_tokens = self._source(request_type, grammar_spec) if self._is_used else (None, 0)
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
        return (
            bitmask if bitmask.shape[1] >= num_words else torch.full((max_num_seqs, num_words), -1, dtype=torch.int32)
        )

    def _source(self, request_type: StructuredOutputOptions, spec: str) -> tuple[str | None, int]:
        """llguidance's grammar and the most tokens, where it is known; None for what xgrammar has to compile."""
        if request_type == StructuredOutputOptions.GRAMMAR and spec.startswith(_MARK):
            mark, _, grammar = spec.partition("\n")
            return grammar, int(mark.removeprefix(_MARK))
        if request_type == StructuredOutputOptions.JSON:
            try:
                return schema_source(json.loads(spec)), 0
            except ValueError:  # of tools that are no more than offered, a schema may say anything
                return None, 0
        return None, 0
