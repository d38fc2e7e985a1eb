"""Kosmos-2: captions, and captions that say where each thing is.

The prompts of huggingface.co/microsoft/kosmos-2-patch14-224: «An image of» and «Describe this image in detail:», the
grounded ones with `<grounding>` in front. Grounded answers link phrases to boxes (`regions.py`).
"""

from serve_app.families.family import CaptionFamily, Style

KOSMOS2 = CaptionFamily(
    "kosmos2",
    (
        Style("short", "An image of"),
        Style("detailed", "Describe this image in detail:"),
        Style("grounded", "<grounding> An image of"),
        Style("grounded detailed", "<grounding> Describe this image in detail:"),
    ),
    repeats_prompt=True,
    grounding="<grounding>",
)
