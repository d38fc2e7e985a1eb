# mypy: ignore-errors
"""The configurations that the remote-code checkpoints bring along."""

from transformers import LlamaConfig, LlavaConfig


class TinyMiniCPMOConfig(LlamaConfig):
    """MiniCPM-o's configuration is its language model's, with a few fields more."""

    model_type = "minicpmo"

    def __init__(self, query_num=16, image_size=32, patch_size=8, **kwargs):
        self.query_num = query_num
        self.image_size = image_size
        self.patch_size = patch_size
        super().__init__(**kwargs)


class TinyRemoteConfig(LlavaConfig):
    model_type = "tiny_remote_vlm"
