# mypy: ignore-errors
"""The configurations that the remote-code checkpoints bring along."""

from typing import ClassVar

from transformers import LlamaConfig, LlavaConfig, PretrainedConfig


class TinyMiniCPMVConfig(LlamaConfig):
    """MiniCPM-V's configuration is its language model's, with a few fields more."""

    model_type = "minicpmv"

    def __init__(self, query_num=16, image_size=32, patch_size=8, **kwargs):
        self.query_num = query_num
        self.image_size = image_size
        self.patch_size = patch_size
        super().__init__(**kwargs)


class TinyMiniCPMOConfig(TinyMiniCPMVConfig):
    model_type = "minicpmo"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)  # else transformers writes an `__init__` that knows only its own fields


class TinyCogVLMConfig(LlamaConfig):
    """CogVLM's too; its tower's part is a plain dictionary."""

    model_type = "cogvlm"

    def __init__(self, vision_config=None, template_version="chat", **kwargs):
        self.vision_config = vision_config or {"image_size": 32, "patch_size": 8}
        self.template_version = template_version
        super().__init__(**kwargs)


class TinyXGenMMConfig(PretrainedConfig):
    model_type = "xgenmm"
    sub_configs: ClassVar = {"text_config": LlamaConfig}

    def __init__(self, text_config=None, num_vis_tokens=4, image_size=32, **kwargs):
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config
        self.num_vis_tokens = num_vis_tokens
        self.image_size = image_size
        super().__init__(**kwargs)


class TinyRemoteConfig(LlavaConfig):
    model_type = "tiny_remote_vlm"
