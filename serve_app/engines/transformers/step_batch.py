"""The running rows, each at a step of its own: they share one cache and one forward of the model at each step.

A newcomer is prefilled apart, with its images, and its cache joins the others'. A row that ends leaves the cache at
once, with the padding that only it needed. `can_join` says for which architectures this is exact.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from serve_app.engines.transformers import kv_cache
from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.prompt_batch import Prompt, collate
from serve_app.engines.transformers.row import Outcome, Row, TokenChoice
from serve_app.engines.transformers.row_sampler import RowSampler

OnStep = Callable[[list[tuple[Row, Outcome]]], None]

# A model with one of these of its own prepares something that the loop here doesn't: Qwen-VL's three-fold positions,
# PaliGemma's and Gemma 3's masks, BLIP-2's and Kosmos-2's embeddings.
_GENERATION_STEPS = (
    "generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation",
    "_prepare_position_ids_for_generation", "create_masks_for_generate",
)  # fmt: skip
# These put images before the text inside the model, so that the cache is longer than the attention mask.
_IMAGES_OUTSIDE_THE_MASK = {"git", "fuyu"}
# With these, rotary frequencies depend on the longest row of the batch.
_BATCH_WIDE_ROTATIONS = {"dynamic", "longrope"}
_FORCED_TOKENS = ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


def can_join(model: Any) -> bool:
    """Whether rows of this model may join and leave between steps, with tokens as if each ran alone.

    True for transformers' own decoders that take positions and a mask, keep every token in a plain cache, and use
    `generate` as it is: Llama, Qwen, OPT, LLaVA, Idefics and kin. All else (encoder–decoders, sliding windows,
    recurrent states, positions of their own, remote code) runs whole batches through `generate`.
    """
    text_config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or text_config.is_encoder_decoder or model.is_remote_code():
        return False
    if model.config.model_type in _IMAGES_OUTSIDE_THE_MASK or getattr(model, "_is_stateful", False):
        return False
    if any(
        getattr(type(model), name, None) is not getattr(GenerationMixin, name, None) for name in _GENERATION_STEPS
    ):
        return False
    if any(getattr(model.generation_config, name, None) is not None for name in _FORCED_TOKENS):
        return False
    if _rotations(text_config) & _BATCH_WIDE_ROTATIONS:
        return False
    parameters = inspect.signature(model.forward).parameters
    if not {"input_ids", "attention_mask", "position_ids", "past_key_values"} <= parameters.keys():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _rotations(text_config: Any) -> set[str]:
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return {str(kind.get("rope_type", "default")) for kind in kinds}


def advance(rows: Sequence[Row], choices: Sequence[TokenChoice], eos_ids: frozenset[int], on_step: OnStep) -> None:
    """Give each running row its token, and `on_step` the outcomes, even where one row's step raises."""
    outcomes: list[tuple[Row, Outcome]] = []
    try:
        for row, choice in zip(rows, choices, strict=True):
            outcome = None if row.is_ended else row.step(choice, eos_ids)
            if outcome:
                outcomes.append((row, outcome))
    finally:
        on_step(outcomes)


class StepBatch:
    """Used by one thread. `on_step` is called with the chunks of each step and of each prefill.

    The cache is as wide as its longest row: at most rows × context, padding included.
    """

    def __init__(self, checkpoint: Checkpoint, on_step: OnStep) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model
        self._on_step = on_step
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self.clear()

    def clear(self) -> None:
        """Drop all rows and their cache."""
        self.rows: list[Row] = []
        self._cache: Any = None
        self._mask = torch.empty(0, 0)  # (rows, tokens in the cache): 0 where padded
        self._sampler = self._sampler_of([])

    def admit(self, rows: Sequence[Row]) -> None:
        """Prefill rows with one batch key, choose their first tokens, and let them join.

        A prompt that several rows share is prefilled once. An exception leaves the running rows as they were.
        """
        prompts = {id(row.prompt): row.prompt for row in rows}
        cache, mask, logits = self._prefilled(list(prompts.values()))
        places = [list(prompts).index(id(row.prompt)) for row in rows]
        choices = self._sampler_of(rows).choose(logits[places])
        advance(rows, choices, self._checkpoint.eos_ids, self._on_step)
        staying = [number for number, row in enumerate(rows) if not row.is_ended]
        if not staying:
            return
        places = [places[number] for number in staying]
        if places != list(range(len(prompts))):
            kv_cache.keep(cache, places)
        self._join([rows[number] for number in staying], cache, mask[places])

    def step(self) -> None:
        """One token for each row."""
        mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        output = self._model(
            input_ids=torch.tensor([row.tokens[-1:] for row in self.rows], device=mask.device),
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._mask = mask
        choices = self._sampler.choose(self._last_logits(output))
        advance(self.rows, choices, self._checkpoint.eos_ids, self._on_step)

    def drop_ended(self) -> None:
        """Remove rows that have ended or were cancelled, and the padding that only they needed."""
        staying = [number for number, row in enumerate(self.rows) if not (row.is_ended or row.is_cancelled)]
        if not staying:
            self.clear()
        elif len(staying) < len(self.rows):
            mask = self._mask[staying]
            padding = int((mask.cumsum(-1) == 0).all(0).sum())
            kv_cache.keep(self._cache, staying, padding)
            self._mask = mask[:, padding:]
            self.rows = [self.rows[number] for number in staying]
            self._sampler = self._sampler_of(self.rows)

    def _prefilled(self, prompts: Sequence[Prompt]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Cache, attention mask and the last column's logits of these prompts."""
        inputs = collate(prompts, self._checkpoint)
        width = inputs["input_ids"].shape[1]
        if "attention_mask" not in inputs:
            starts = torch.tensor([[width - prompt.num_tokens] for prompt in prompts])
            inputs["attention_mask"] = (torch.arange(width) >= starts).long().to(inputs["input_ids"].device)
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        cache = DynamicCache(config=self._model.config)
        only_last = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self._model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True, **only_last)
        return cache, mask, self._last_logits(output)

    def _last_logits(self, output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits[:, -1]
        return logits.to(self._model.device, torch.float32)  # they may come from another device

    def _join(self, rows: list[Row], cache: Any, mask: torch.Tensor) -> None:
        sampler = self._sampler_of(self.rows + rows)
        if self.rows:
            width = max(mask.shape[1], self._mask.shape[1])
            mask = torch.cat([_widened(self._mask, width), _widened(mask, width)])
            kv_cache.join(self._cache, cache)
        else:
            self._cache = cache
        self._mask, self.rows, self._sampler = mask, self.rows + rows, sampler

    def _sampler_of(self, rows: Sequence[Row]) -> RowSampler:
        return RowSampler(rows, self._checkpoint.eos_ids, self._model.device)


def _widened(mask: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))
