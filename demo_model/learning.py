"""The two losses: patches (what is where) and words (the answers), for one batch of pictures and rows.

Calls the parts of the transformers model directly, because its own `forward` takes neither the block mask of
packed rows nor pictures in one flat list. A test checks that the packed logits equal those of `forward`.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from demo_model.architecture import NUM_IMAGE_TOKENS, NUM_PATCHES, TEXT_WIDTH, VISION_WIDTH
from demo_model.packing import Batch
from demo_model.patch_embedding import PatchProduct
from demo_model.perception import PatchHeads, patch_targets


def mixed_precision() -> torch.autocast:
    """bfloat16 where this CPU computes in it; elsewhere that is imitated, several times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16)


def normalized(pixels: Tensor) -> Tensor:
    """uint8 (pictures, height, width, 3) → float (pictures, 3, height, width) in [-1, 1], as the processor does."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def prepare(model: Idefics3ForConditionalGeneration) -> None:
    """Makes steps shorter, with the same result: figures in `benchmarks/LOG.md`.

    torch's fused attention spends 47 % of a step in its backward pass on CPUs, so the plain one is faster, though it
    keeps all scores.
    """
    model.set_attn_implementation("eager")
    model.model.vision_model.embeddings.patch_embedding.__class__ = PatchProduct


def patch_features(model: Idefics3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(pictures, patches, width); of a batch without pictures, nothing."""
    if not len(pixels):
        return torch.empty(0, NUM_PATCHES, VISION_WIDTH)
    hidden: Tensor = model.model.vision_model(pixel_values=normalized(pixels)).last_hidden_state
    return hidden


def answer_logits(
    model: Idefics3ForConditionalGeneration, features: Tensor, batch: Batch, image_token: int
) -> tuple[Tensor, Tensor]:
    """Logits and labels at the positions where the assistant speaks: (answers' tokens, vocabulary) and (tokens,)."""
    logits, labels, _ = answer_logits_of(model, image_tokens(model, features), batch, image_token)
    return logits, labels


def image_tokens(model: Idefics3ForConditionalGeneration, features: Tensor) -> Tensor:
    """(pictures, image tokens, width): what the language model reads; of a batch without pictures, nothing."""
    if not len(features):
        return features.new_empty(0, NUM_IMAGE_TOKENS, TEXT_WIDTH)
    images: Tensor = model.model.connector(features)
    return images


def answer_logits_of(
    model: Idefics3ForConditionalGeneration, images: Tensor, batch: Batch, image_token: int
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As `answer_logits`, of image tokens; and each layer's attention (rows, heads, length, length)."""
    embeddings = model.model.text_model.embed_tokens(batch.tokens)
    if len(batch.pictures):
        images = images.to(embeddings.dtype)
        embeddings = embeddings.masked_scatter((batch.tokens == image_token)[..., None], images)
    forbidden = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    read = model.model.text_model(
        inputs_embeds=embeddings, attention_mask=forbidden, position_ids=batch.positions, use_cache=False,
        output_attentions=True,
    )  # fmt: skip
    is_answer = batch.labels >= 0
    return model.lm_head(read.last_hidden_state[is_answer]), batch.labels[is_answer], read.attentions


def patch_loss(
    heads: PatchHeads, features: Tensor, scenes: np.ndarray, covering: np.ndarray
) -> tuple[Tensor, dict[str, float]]:
    loss, right = heads(features, patch_targets(scenes, covering))
    return loss, right


def word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels)


def right_branches(logits: Tensor, labels: Tensor, batch: Batch) -> dict[tuple[int, int], bool]:
    """For each (row, branch): whether greedy decoding would say exactly the wanted answers.

    That every token is the most likely one after the right beginning is the same as a right greedy answer.
    """
    is_right = (logits.argmax(-1) == labels).tolist()
    rows, columns = torch.nonzero(batch.labels >= 0, as_tuple=True)
    result: dict[tuple[int, int], bool] = {}
    for row, branch, right in zip(rows.tolist(), batch.branches[rows, columns].tolist(), is_right, strict=True):
        result[row, branch] = result.get((row, branch), True) and right
    return result
