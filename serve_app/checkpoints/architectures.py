"""What an engine must know of an architecture beyond what its processor says: one row for each `model_type`.

An architecture without a row takes images anywhere in the text, as many as fit, and batches unequal prompts.
Knows nothing of transformers' classes; the rows were tried on transformers 5.19.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """How prompts of a `model_type` are made and batched.

    `images`: a plain prompt (no chat template) has the image's token where the image stood (`inline`), in
    front of all text (`in_front`), or none, because the processor places it itself (`by_processor`).
    `needs_image`: it captions, and can't answer to text alone. `equal_lengths_only`: it counts positions from the
    first token, padding included, so only prompts of one length batch exactly.
    `ends_with_separator`: its tokenizer closes a prompt that the answer has to go on with. `unused_inputs`: what
    its processor makes and its model doesn't take. `has_pixel_strip`: the pixels of all its images are one strip,
    end to end along the last dimension. `says_places`: its answers say places with special tokens, which are left
    out of other models' answers.
    """

    image_limit: int | None = None
    needs_image: bool = False
    images: Literal["inline", "in_front", "by_processor"] = "inline"
    equal_lengths_only: bool = False
    ends_with_separator: bool = False
    unused_inputs: tuple[str, ...] = ()
    has_pixel_strip: bool = False
    says_places: bool = False


_ONE_IMAGE = Architecture(image_limit=1, needs_image=True, images="by_processor")
_ARCHITECTURES = {
    "blip": Architecture(1, needs_image=True, images="by_processor", equal_lengths_only=True),
    "blip-2": _ONE_IMAGE,
    "instructblip": _ONE_IMAGE,
    "florence2": Architecture(1, needs_image=True, images="by_processor", says_places=True),
    "pix2struct": _ONE_IMAGE,
    "git": Architecture(
        image_limit=1,
        needs_image=True,
        images="by_processor",
        equal_lengths_only=True,
        ends_with_separator=True,
        unused_inputs=("token_type_ids",),
    ),
    "kosmos-2": Architecture(1, needs_image=True, images="by_processor", equal_lengths_only=True),
    "minicpmv4_6": Architecture(has_pixel_strip=True),
    "paligemma": Architecture(1, needs_image=True, images="in_front", unused_inputs=("labels",)),
}
_ANY = Architecture()


def architecture_of(model_type: str) -> Architecture:
    """The row of a checkpoint's `model_type`."""
    return _ARCHITECTURES.get(model_type, _ANY)
