"""From many prompts' inputs to one batch for the model. Prompts batch together where their tensors line up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.remote.model import RemoteModel

# InstructBLIP's Q-Former reads the text as well, with its own tokenizer, and is padded right like any BERT.
_SECOND_PROMPT = "qformer_"
# Stacks of frames, with their number of dimensions. Processors fill them up with zeros, which the models drop:
# Idefics, LLaVA-NeXT and kin.
_FRAME_STACKS = {"pixel_values": 5, "pixel_attention_mask": 4}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's model inputs, on the CPU, each with a first dimension of its own; `num_tokens` is its length.

    For a `RemoteModel`, `own` holds its inputs, and there are no tensors.
    """

    tensors: dict[str, torch.Tensor]
    num_tokens: int
    batch_key: tuple[Any, ...]
    own: Any = None

    @property
    def token_ids(self) -> torch.Tensor:
        """Shape (tokens,); empty where the model makes its prompts itself."""
        return self.tensors["input_ids"][0] if self.own is None else torch.empty(0, dtype=torch.long)


def batch_key(tensors: dict[str, torch.Tensor], length: int, checkpoint: Checkpoint) -> tuple[Any, ...]:
    """Equal for prompts that may run in one batch: the same tensors, with shapes that line up."""
    shapes = tuple(
        (name, tensor.dtype, *_fixed_shape(name, tensor, length, checkpoint))
        for name, tensor in sorted(tensors.items())
    )
    return (shapes, length) if checkpoint.architecture.equal_lengths_only else (shapes,)


def is_along_prompt(name: str, tensor: torch.Tensor, length: int) -> bool:
    return name.startswith(_SECOND_PROMPT) or (
        tensor.dim() == 2 and tuple(tensor.shape) == (1, length) and not tensor.is_floating_point()
    )


def _fixed_shape(name: str, tensor: torch.Tensor, length: int, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The part of a tensor's shape that all prompts in a batch must share."""
    if is_along_prompt(name, tensor, length):
        return ()
    if _is_strip(name, checkpoint):
        return tuple(tensor.shape[:-1])
    return tuple(tensor.shape[2 if _FRAME_STACKS.get(name) == tensor.dim() else 1 :])


def _is_strip(name: str, checkpoint: Checkpoint) -> bool:
    return name == "pixel_values" and checkpoint.architecture.has_pixel_strip


def collate(prompts: Sequence[Prompt], checkpoint: Checkpoint) -> dict[str, Any]:
    """One batch on the model's device: prompts padded left (encoder–decoders right), the rest stacked in order."""
    if isinstance(checkpoint.model, RemoteModel):
        return {"own_prompts": [prompt.own for prompt in prompts]}
    length = max(p.num_tokens for p in prompts)
    device, dtype = checkpoint.model.device, checkpoint.model.dtype
    batch = {}
    for name in prompts[0].tensors:
        rows = [p.tensors[name] for p in prompts]
        if name.startswith(_SECOND_PROMPT):
            longest = max(row.shape[1] for row in rows)
            rows = [_padded(row, longest, 0, on_the_right=True) for row in rows]
        elif is_along_prompt(name, rows[0], prompts[0].num_tokens):
            value = checkpoint.pad_id if name == "input_ids" else 0
            rows = [_padded(row, length, value, checkpoint.is_encoder_decoder) for row in rows]
        elif _FRAME_STACKS.get(name) == rows[0].dim():
            rows = _with_equal_frames(rows)
        joined = torch.cat(rows, dim=-1 if _is_strip(name, checkpoint) else 0)
        batch[name] = joined.to(device, dtype) if joined.is_floating_point() else joined.to(device)
    return batch


def _padded(row: torch.Tensor, length: int, value: int, on_the_right: bool) -> torch.Tensor:
    missing = length - row.shape[1]
    return torch.nn.functional.pad(row, (0, missing) if on_the_right else (missing, 0), value=value)


def _with_equal_frames(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    num_frames = max(row.shape[1] for row in rows)
    return [
        torch.cat([row, row.new_zeros(row.shape[0], num_frames - row.shape[1], *row.shape[2:])], dim=1)
        for row in rows
    ]
