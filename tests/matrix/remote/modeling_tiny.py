# mypy: ignore-errors
"""A model that transformers doesn't know, with transformers' own conventions."""

from transformers import LlavaForConditionalGeneration

from .configuration_tiny import TinyRemoteConfig


class TinyRemoteForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = TinyRemoteConfig
