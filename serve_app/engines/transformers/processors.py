"""Loads the processor of a checkpoint that takes images, and reads its image tokens.

Several processors need a video processor, which needs torchvision, and CPU builds of torch come without that. Videos
aren't served, so where torchvision is missing a stand-in takes the video processor's place.
"""

from typing import Any

from jinja2 import TemplateError
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available


class NoVideoProcessor:
    """The stand-in for a video processor: has every setting, each None, and processes nothing."""

    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


def load_processor(source: str, architecture: Any, hub_options: dict[str, Any]) -> Any:
    """The processor of a model that takes images. `hub_options`: the arguments of every `from_pretrained`."""
    processor_class = PROCESSOR_MAPPING.get(type(architecture), None)
    wants_videos = processor_class is not None and "video_processor" in processor_class.get_attributes()
    if wants_videos and not is_torchvision_available():
        return without_videos(processor_class, source, hub_options)
    return AutoProcessor.from_pretrained(source, **hub_options)


def image_tokens(processor: Any) -> set[str]:
    """The tokens that stand for an image, by its processor and its tokenizer, whose names differ for Gemma 3.

    The begin and the end of an image are among them, because Gemma 3's and Kosmos-2's processors look for them.
    """
    holders = (processor, getattr(processor, "tokenizer", processor))
    names = ("image_token", "video_token", "boi_token", "eoi_token")
    tokens = [getattr(holder, name, None) for holder in holders for name in names]
    return {str(token) for token in tokens if token}


def image_mark(processor: Any) -> str:
    """The text for an image in a raw prompt: what the chat template writes for an image between two texts.

    Qwen-VL's has a begin and an end around the token. Without a template, or with one that puts images elsewhere, it
    is the processor's own token; it is empty where the processor places images itself.
    """
    own = str(getattr(processor, "image_token", None) or "")
    if not getattr(processor, "chat_template", None):
        return own
    parts = [{"type": "text", "text": "BEFORE"}, {"type": "image"}, {"type": "text", "text": "AFTER"}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    except (TemplateError, ValueError, TypeError, KeyError, IndexError):
        return own
    between = str(text).partition("BEFORE")[2].partition("AFTER")[0].strip()
    return between if any(token in between for token in image_tokens(processor)) else own


def without_videos(processor_class: Any, source: str, hub_options: dict[str, Any]) -> Any:
    """Load the processor part by part, as its `from_pretrained` does, without its video processor."""

    class WithoutVideos(processor_class):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return NoVideoProcessor
            return super().check_argument_for_proper_class(argument_name, argument)

        def __repr__(self) -> str:  # the base class writes every part out as JSON
            return f"{processor_class.__name__} without videos"

    WithoutVideos.__name__ = processor_class.__name__
    settings, _ = processor_class.get_processor_dict(source, revision=hub_options["revision"])
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(source, **hub_options),
        "tokenizer": AutoTokenizer.from_pretrained(source, **hub_options),
        "video_processor": NoVideoProcessor(),
    }
    return WithoutVideos.from_args_and_dict([parts[name] for name in processor_class.get_attributes()], settings)
