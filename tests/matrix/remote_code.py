"""Builders of checkpoints that carry their own code, in the conventions that such models have."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import LlavaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.matrix.parts import decoder, save, save_json, square, tower
from tests.matrix.remote.configuration_tiny import (
    TinyCogVLMConfig,
    TinyMiniCPMOConfig,
    TinyMiniCPMVConfig,
    TinyRemoteConfig,
    TinyXGenMMConfig,
)
from tests.matrix.remote.modeling_cogvlm import CogVLMForCausalLM
from tests.matrix.remote.modeling_minicpmo import MiniCPMO
from tests.matrix.remote.modeling_minicpmv import MiniCPMV
from tests.matrix.remote.modeling_tiny import TinyRemoteForConditionalGeneration
from tests.matrix.remote.modeling_xgenmm import XGenMMModelForConditionalGeneration
from tests.tiny_models import CHAT_TEMPLATE, CONTEXT_LENGTH, tokenizer

_CODE = Path(__file__).parent / "remote"


def build_remote_vlm(folder: Path) -> Path:
    """Code that transformers doesn't have, with transformers' own conventions for processor and `generate`."""
    tokens = tokenizer(named={"image_token": "<image>"})
    config = TinyRemoteConfig(
        text_config=decoder("llama", len(tokens)), vision_config=tower("siglip_vision_model"),
        image_token_index=3, vision_feature_layer=-2, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size=square(32)), tokens, patch_size=8, vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    save(folder, TinyRemoteForConditionalGeneration(config), processor)
    return _with_code(folder, {
        "AutoConfig": "configuration_tiny.TinyRemoteConfig",
        "AutoModelForImageTextToText": "modeling_tiny.TinyRemoteForConditionalGeneration",
    })  # fmt: skip


def build_minicpmv(folder: Path) -> Path:
    """MiniCPM-V 2.6's conventions: `chat`, and the image before it, unless it stands among the messages."""
    return _minicpm(folder, MiniCPMV, TinyMiniCPMVConfig, also_named=("AutoModelForCausalLM",))


def build_minicpmo(folder: Path) -> Path:
    """MiniCPM-o 2.6's: `chat`, and a class that only `AutoModel` names."""
    return _minicpm(folder, MiniCPMO, TinyMiniCPMOConfig)


def _minicpm(folder: Path, model_class: Any, config_class: Any, also_named: tuple[str, ...] = ()) -> Path:
    tokens = tokenizer()
    save(folder, model_class(config_class(**decoder(config_class.model_type, len(tokens)))), tokens)
    save_json(folder / "processor_config.json", {
        "processor_class": "TinyMiniCPMProcessor",
        "auto_map": {"AutoProcessor": "processing_tiny.TinyMiniCPMProcessor"},
    })  # fmt: skip
    place = f"modeling_{config_class.model_type}.{model_class.__name__}"
    names = {"AutoConfig": f"configuration_tiny.{config_class.__name__}", "AutoModel": place}
    return _with_code(folder, names | dict.fromkeys(also_named, place))


def build_cogvlm(folder: Path) -> Path:
    """CogVLM's conventions: the model makes its own inputs; no processor. The hub's has no tokenizer either."""
    tokens = tokenizer(chat_template=None)
    config_class: Any = TinyCogVLMConfig
    model_class: Any = CogVLMForCausalLM
    save(folder, model_class(config_class(**decoder("cogvlm", len(tokens)))), tokens)
    return _with_code(folder, {
        "AutoConfig": "configuration_tiny.TinyCogVLMConfig",
        "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    })  # fmt: skip


def build_xgenmm(folder: Path) -> Path:
    """xGen-MM's conventions, under the name that its class had in transformers 4."""
    tokens = tokenizer(chat_template=None, named={"end_of_turn_token": "<|end|>", "image_token": "<image>"})
    config_class: Any = TinyXGenMMConfig
    model_class: Any = XGenMMModelForConditionalGeneration
    # `update_special_tokens` adds two that the tokenizer lacks; the card's system prompt has 170 letters
    text = decoder("llama", len(tokens) + 2, max_position_embeddings=2 * CONTEXT_LENGTH)
    save(folder, model_class(config_class(text_config=text)), tokens)
    save_json(folder / "preprocessor_config.json", {
        "image_processor_type": "XGenMMImageProcessor", "size": 32,
        "auto_map": {"AutoImageProcessor": "image_processing_tiny.XGenMMImageProcessor"},
    })  # fmt: skip
    return _with_code(folder, {
        "AutoConfig": "configuration_tiny.TinyXGenMMConfig",
        "AutoModelForVision2Seq": "modeling_xgenmm.XGenMMModelForConditionalGeneration",
    })  # fmt: skip


def _with_code(folder: Path, auto_map: dict[str, str]) -> Path:
    for file in _CODE.glob("*_*.py"):
        if file.name != "__init__.py":
            shutil.copy(file, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    return folder
