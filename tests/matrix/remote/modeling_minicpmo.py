# mypy: ignore-errors
"""MiniCPM-o 2.6's conventions in small: MiniCPM-V's, all of it optional, and switches for what it hears and says."""

from .configuration_tiny import TinyMiniCPMOConfig
from .modeling_minicpmv import MiniCPMV


class MiniCPMO(MiniCPMV):
    config_class = TinyMiniCPMOConfig

    def chat(
        self, image=None, msgs=None, tokenizer=None, processor=None, omni_input=False, use_tts_template=False,
        generate_audio=False, max_inp_length=32768, **kwargs,
    ):  # fmt: skip
        return super().chat(image, msgs, tokenizer, processor, max_inp_length=max_inp_length, **kwargs)
