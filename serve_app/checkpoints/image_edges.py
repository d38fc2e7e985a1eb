"""How much of an image a model's processor keeps, read from its checkpoint, so that no more has to be sent.

Only where the processor does nothing before it resizes to one fixed size. Those that cut images into tiles, or take
as many patches as an image has (LLaVA-NeXT, InternVL, Qwen-VL, MiniCPM-V, Idefics with splitting), keep all of it.
"""

import json
from pathlib import Path
from typing import Any

from serve_app.messages import ImageEdge

_FILES = ("processor_config.json", "preprocessor_config.json")  # transformers 5 writes the first
_FIXED_SIZE = ("CLIP", "Siglip", "Blip", "ViT", "Bit", "DeiT", "ConvNext", "Gemma3", "Kosmos2", "Florence2")
_SPLITTING = ("Idefics3", "Idefics2", "SmolVLM")
_SPLITS = ("do_image_splitting", "do_pan_and_scan")


def image_edge(folder: Path) -> ImageEdge | None:
    """The edge that the checkpoint's image processor resizes to; None where it isn't known to resize only."""
    config = folder / "config.json"
    if config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8")):
        return None  # code of its own may look at anything
    for name in _FILES:
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            return _edge(settings.get("image_processor", settings))
    return None


def _edge(settings: Any) -> ImageEdge | None:
    if not isinstance(settings, dict) or not settings.get("do_resize", True):
        return None
    # Not `feature_extractor_type`, its older name: InternVL's says CLIP there, and InternVL tiles.
    kind = str(settings.get("image_processor_type") or "")
    # Idefics' classes split by default, the others never.
    if any(settings.get(split, kind.startswith(_SPLITTING) and split == _SPLITS[0]) for split in _SPLITS):
        return None
    if not kind.startswith((*_FIXED_SIZE, *_SPLITTING)):
        return None
    match settings.get("size"):
        case int(edge):
            return ImageEdge("shortest", edge)
        case {"longest_edge": edge, **others} if not others:
            return ImageEdge("longest", int(edge))
        case {"shortest_edge": edge, **others} if not others:
            return ImageEdge("shortest", int(edge))
        case {"height": height, "width": width, **others} if not others:
            return ImageEdge("shortest", max(int(height), int(width)))
    return None
