"""BLIP, BLIP-2, InstructBLIP and GIT: captioners that complete a few words, or none at all.

An empty prompt is a caption without a prompt, as these were trained for. BLIP: huggingface.co/Salesforce/
blip-image-captioning-base (unconditional, and «a photography of»). BLIP-2: huggingface.co/Salesforce/blip2-opt-2.7b
and its paper's «a photo of» and `Question: … Answer:` (arxiv.org/abs/2301.12597); an own prompt may be either.
InstructBLIP: huggingface.co/Salesforce/instructblip-vicuna-7b, and the captioning templates of its paper
(arxiv.org/abs/2305.06500). GIT: huggingface.co/microsoft/git-base-coco, unconditional.
"""

from serve_app.families.family import CaptionFamily, Style

BLIP = CaptionFamily("blip", (Style("short", ""), Style("prefixed", "a photography of")))
BLIP2 = CaptionFamily(
    "blip2",
    (
        Style("short", "a photo of"),
        Style("detailed", "Question: What is shown in the photo in detail? Answer:"),
        Style("unconditional", ""),
    ),
    repeats_prompt=True,
)
INSTRUCTBLIP = CaptionFamily(
    "instructblip",
    (
        Style("short", "Write a short description for the image."),
        Style("detailed", "Write a detailed description for the image."),
        Style("few words", "Use a few words to illustrate what is happening in the picture."),
        Style("brief", "Briefly describe the content of the image."),
    ),
    repeats_prompt=True,
)
GIT = CaptionFamily("git", (Style("short", ""),))
