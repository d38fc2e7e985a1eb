"""Chat models that take images: prompted in plain words, at any length, in any language.

The three common styles are ours, except MiniCPM's, which follow its card (huggingface.co/openbmb/MiniCPM-V-2_6). The
others are their authors': Qwen's card says «Describe this image.» (huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct),
InternVL's «shortly» and «in detail» (huggingface.co/OpenGVLab/InternVL2-8B), and LLaVA has the first prompts of
Tables 11 and 12 of its paper (arxiv.org/abs/2304.08485), on which it was trained.
"""

from serve_app.families.family import CaptionFamily, Style

_IN_LANGUAGE = " Answer in {language}."

_SHORT = (
    "Write a caption of at most {word_count} words for this picture.",
    "Write a {length} caption for this picture.",
)
_DETAILED = (
    "Describe this picture in at most {word_count} words.",
    "Write a {length} description of this picture.",
)
_TAGS = (
    "List at most {word_count} tags for this picture, separated by commas.",
    "Write a {length} list of tags for this picture, separated by commas.",
)
_COMMON = (
    Style("short", "Write a short caption for this picture.", *_SHORT),
    Style("detailed", "Describe this picture in detail.", *_DETAILED),
    Style("tags", "List tags for this picture, separated by commas.", *_TAGS, lists_tags=True),
)


def _family(name: str, *own: Style) -> CaptionFamily:
    return CaptionFamily(name, (*_COMMON, *own), in_language=_IN_LANGUAGE)


GENERIC = _family("generic")
QWEN_VL = _family("qwen-vl", Style("describe", "Describe this image."))
INTERNVL = _family(
    "internvl",
    Style("describe shortly", "Please describe the image shortly."),
    Style("describe in detail", "Please describe the image in detail."),
)
LLAVA = _family(
    "llava",
    Style("concise", "Describe the image concisely."),
    Style("in detail", "Describe the following image in detail"),
)
MINICPM = CaptionFamily(
    "minicpm",
    (
        Style("short", "Describe the image in one sentence.", *_SHORT),
        Style("detailed", "Please describe the image in detail.", *_DETAILED),
        Style("tags", "List tags for the image, separated by commas.", *_TAGS, lists_tags=True),
    ),
    in_language=_IN_LANGUAGE,
)
