"""JoyCaption, Beta One and Alpha Two: the caption types, lengths and extra options that they were trained on.

Beta One's are those of its Space (huggingface.co/spaces/fancyfeast/joy-caption-beta-one), as its author's own app and
README have them: github.com/fpgaminer/joycaption, `gradio-app/app.py` and `README.md` at 8445b2e. Alpha Two's are
those of huggingface.co/spaces/fancyfeast/joy-caption-alpha-two and of the same README at 9f6ff1f. The system prompt
is that of both READMEs' examples. The options' names are those by which the ComfyUI nodes around the model know them.
"""

from dataclasses import replace

from serve_app.families.family import NAME_OPTION, CaptionFamily, Style

SYSTEM = "You are a helpful image captioner."

_STRAIGHTFORWARD = (
    "Begin with the main subject and medium. Mention pivotal elements—people, objects, scenery—using confident, "
    "definite language. Focus on concrete details like color, shape, texture, and spatial relationships. Show how "
    "elements interact. Omit mood and speculative wording. If text is present, quote it exactly. Note any "
    "watermarks, signatures, or compression artifacts. Never mention what's absent, resolution, or unobservable "
    "details. Vary your sentence structure and keep the description concise, without starting with “This image is…” "
    "or similar phrasing."
)
_STABLE_DIFFUSION = "stable diffusion prompt that is indistinguishable from a real stable diffusion prompt."
_DANBOORU = (
    "Generate only comma-separated Danbooru tags (lowercase_underscores). Strict order: `artist:`, `copyright:`, "
    "`character:`, `meta:`, then general tags. Include counts (1girl), appearance, clothing, accessories, pose, "
    "expression, actions, background. Use precise Danbooru syntax. No extra text."
)
_E621 = (
    "comma-separated list of e621 tags in alphabetical order for this image. Start with the artist, copyright, "
    "character, species, meta, and lore tags (if any), prefixed by 'artist:', 'copyright:', 'character:', "
    "'species:', 'meta:', and 'lore:'. Then all the general tags."
)
_RULE34 = (
    "comma-separated list of rule34 tags in alphabetical order for this image. Start with the artist, copyright, "
    "character, and meta tags (if any), prefixed by 'artist:', 'copyright:', 'character:', and 'meta:'. Then all the "
    "general tags."
)
_ART_CRITIC = (
    "Analyze this image like an art critic would with information about its composition, style, symbolism, the use "
    "of color, light, any artistic movement it might belong to, etc."
)


def _written(label: str, what: str, lists_tags: bool = False) -> Style:
    """The form of most prompts: a number of words or a length belongs to the one sentence."""
    return Style(
        label,
        f"Write a {what}.",
        f"Write a {what} within {{word_count}} words.",
        f"Write a {{length}} {what}.",
        lists_tags,
    )


def _toned(label: str, tone: str) -> Style:
    return _written(label, f"descriptive caption for this image in a {tone} tone")


def _listed(label: str, kind: str) -> Style:
    return _written(label, f"list of {kind} tags for this image", lists_tags=True)


def _limited(label: str, what: str, limit: str, lists_tags: bool = False) -> Style:
    """The form of longer prompts: a number of words is a sentence of its own."""
    return Style(label, f"Write a {what}", f"Write a {what} {limit}", f"Write a {{length}} {what}", lists_tags)


_FORMAL = _toned("Descriptive", "formal")
_BOORU = _listed("Booru tag list", "Booru")
# The three styles that every family has, in Alpha Two's words, which Beta One was trained on as well.
_OURS = (
    replace(_FORMAL, label="short", prompt="Write a short descriptive caption for this image in a formal tone."),
    replace(_FORMAL, label="detailed", prompt="Write a long descriptive caption for this image in a formal tone."),
    replace(_BOORU, label="tags"),
)
_IN_BOTH = (
    _written("MidJourney", "MidJourney prompt for this image"),
    _listed("Booru-like tag list", "Booru-like"),
    Style(
        "Art Critic",
        _ART_CRITIC,
        f"{_ART_CRITIC} Keep it within {{word_count}} words.",
        f"{_ART_CRITIC} Keep it {{length}}.",
    ),
    _limited(
        "Product Listing",
        "caption for this image as though it were a product listing.",
        "Keep it under {word_count} words.",
    ),
    _limited(
        "Social Media Post",
        "caption for this image as if it were being used for a social media post.",
        "Limit the caption to {word_count} words.",
    ),
)

BETA_ONE_TYPES = (
    Style(
        "Descriptive",
        "Write a detailed description for this image.",
        "Write a detailed description for this image in {word_count} words or less.",
        "Write a {length} detailed description for this image.",
    ),
    _toned("Descriptive (Casual)", "casual"),
    Style(
        "Straightforward",
        f"Write a straightforward caption for this image. {_STRAIGHTFORWARD}",
        f"Write a straightforward caption for this image within {{word_count}} words. {_STRAIGHTFORWARD}",
        f"Write a {{length}} straightforward caption for this image. {_STRAIGHTFORWARD}",
    ),
    Style(
        "Stable Diffusion Prompt",
        f"Output a {_STABLE_DIFFUSION}",
        f"Output a {_STABLE_DIFFUSION} {{word_count}} words or less.",
        f"Output a {{length}} {_STABLE_DIFFUSION}",
    ),
    Style(
        "Danbooru tag list",
        _DANBOORU,
        f"{_DANBOORU} {{word_count}} words or less.",
        f"{_DANBOORU} {{length}} length.",
        lists_tags=True,
    ),
    _limited("e621 tag list", _E621, "Keep it under {word_count} words.", lists_tags=True),
    _limited("Rule34 tag list", _RULE34, "Keep it under {word_count} words.", lists_tags=True),
    *_IN_BOTH,
)
ALPHA_TWO_TYPES = (
    _FORMAL,
    _toned("Descriptive (Informal)", "casual"),
    _written("Training Prompt", "stable diffusion prompt for this image"),
    _BOORU,
    *_IN_BOTH,
)

ALPHA_TWO_OPTIONS = {
    NAME_OPTION: "If there is a person/character in the image you must refer to them as {name}.",
    "exclude_people_info": (
        "Do NOT include information about people/characters that cannot be changed (like ethnicity, gender, etc), "
        "but do still include changeable attributes (like hair style)."
    ),
    "include_lighting": "Include information about lighting.",
    "include_camera_angle": "Include information about camera angle.",
    "include_watermark": "Include information about whether there is a watermark or not.",
    "include_jpeg_artifacts": "Include information about whether there are JPEG artifacts or not.",
    "include_exif": (
        "If it is a photo you MUST include information about what camera was likely used and details such as "
        "aperture, shutter speed, ISO, etc."
    ),
    "exclude_sexual": "Do NOT include anything sexual; keep it PG.",
    "exclude_image_resolution": "Do NOT mention the image's resolution.",
    "include_aesthetic_quality": (
        "You MUST include information about the subjective aesthetic quality of the image from low to very high."
    ),
    "include_composition_style": (
        "Include information on the image's composition style, such as leading lines, rule of thirds, or symmetry."
    ),
    "exclude_text": "Do NOT mention any text that is in the image.",
    "specify_depth_field": "Specify the depth of field and whether the background is in focus or blurred.",
    "specify_lighting_sources": "If applicable, mention the likely use of artificial or natural lighting sources.",
    "do_not_use_ambiguous_language": "Do NOT use any ambiguous language.",
    "include_nsfw": "Include whether the image is sfw, suggestive, or nsfw.",
    "only_describe_most_important_elements": "ONLY describe the most important elements of the image.",
}
BETA_ONE_OPTIONS = ALPHA_TWO_OPTIONS | {
    "do_not_include_artist_name_or_title": (
        "If it is a work of art, do not include the artist's name or the title of the work."
    ),
    "identify_image_orientation": (
        "Identify the image orientation (portrait, landscape, or square) and aspect ratio if obvious."
    ),
    "use_vulgar_slang_and_profanity": (
        'Use vulgar slang and profanity, such as (but not limited to) "fucking," "slut," "cock," etc.'
    ),
    "do_not_use_polite_euphemisms": "Do NOT use polite euphemisms—lean into blunt, casual phrasing.",
    "include_character_age": "Include information about the ages of any people/characters when applicable.",
    "include_camera_shot_type": (
        "Mention whether the image depicts an extreme close-up, close-up, medium close-up, medium shot, cowboy shot, "
        "medium wide shot, wide shot, or extreme wide shot."
    ),
    "exclude_mood_feeling": "Do not mention the mood/feeling/etc of the image.",
    "include_camera_vantage_height": (
        "Explicitly specify the vantage height (eye-level, low-angle worm’s-eye, bird’s-eye, drone, rooftop, etc.)."
    ),
    "mention_watermark": "If there is a watermark, you must mention it.",
    "avoid_meta_descriptive_phrases": (
        "Your response will be used by a text-to-image model, so avoid useless meta phrases like “This image "
        'shows…”, "You are looking at...", etc.'
    ),
}

BETA_ONE = CaptionFamily("joycaption", (*_OURS, *BETA_ONE_TYPES), SYSTEM, BETA_ONE_OPTIONS)
ALPHA_TWO = CaptionFamily("joycaption-alpha-two", (*_OURS, *ALPHA_TWO_TYPES), SYSTEM, ALPHA_TWO_OPTIONS)
