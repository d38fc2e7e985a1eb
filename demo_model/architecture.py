"""The model's shape: an Idefics3 of about 2.2 million parameters, and its image processor.

One picture becomes 128 × 128 pixels (squashed, whatever its aspect), 8 × 8 patches and, after the pixel
shuffle, 16 image tokens. Eight patches a side, because transformers computes a patch's position in the
model's dtype: only with a power of two is that exact in bfloat16, and so equal in every engine.
"""

from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

IMAGE_SIDE = 128
PATCHES_PER_SIDE = 8
NUM_PATCHES = PATCHES_PER_SIDE**2
SHUFFLE = 2
NUM_IMAGE_TOKENS = NUM_PATCHES // SHUFFLE**2
VOCABULARY_SIZE = 1024
CONTEXT_LENGTH = 2048
HEAD_SIZE = 32
VISION_WIDTH, VISION_LAYERS = 128, 4
TEXT_WIDTH, TEXT_LAYERS = 128, 4


def image_processor() -> Idefics3ImageProcessorPil:
    """Two resizes as in every Idefics3: the longest edge to 256, then a square of 128."""
    return Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": 2 * IMAGE_SIDE},
        max_image_size={"longest_edge": IMAGE_SIDE},
        resample=2,  # bilinear
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def model_config(token_ids: dict[str, int]) -> Idefics3Config:
    """The configuration; `token_ids` names the ids of `image`, `bos`, `eos` and `pad`."""
    special = {
        "bos_token_id": token_ids["bos"],
        "eos_token_id": token_ids["eos"],
        "pad_token_id": token_ids["pad"],
    }
    return Idefics3Config(
        image_token_id=token_ids["image"],
        scale_factor=SHUFFLE,
        tie_word_embeddings=True,
        vision_config={
            "model_type": "idefics3_vision",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 4 * VISION_WIDTH,
            "num_hidden_layers": VISION_LAYERS,
            "hidden_act": "gelu",
            "num_attention_heads": VISION_WIDTH // HEAD_SIZE,
            "image_size": IMAGE_SIDE,
            "patch_size": IMAGE_SIDE // PATCHES_PER_SIDE,
        },
        text_config={
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": TEXT_WIDTH // HEAD_SIZE,
            "num_key_value_heads": TEXT_WIDTH // HEAD_SIZE,
            "head_dim": HEAD_SIZE,
            "max_position_embeddings": CONTEXT_LENGTH,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            **special,
        },
        **special,
    )


def new_model(config: Idefics3Config) -> Idefics3ForConditionalGeneration:
    """The model with random weights in float32."""
    return Idefics3ForConditionalGeneration(config)
