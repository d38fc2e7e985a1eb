"""Captioners with prompts of a fixed form: a few words to complete, a task, or none at all.

An empty prompt is a caption without a prompt, as these were trained for. The sources of the words:

- BLIP: huggingface.co/Salesforce/blip-image-captioning-base (unconditional, and «a photography of»).
- BLIP-2: huggingface.co/Salesforce/blip2-opt-2.7b and its paper's «a photo of» and `Question: … Answer:`
  (arxiv.org/abs/2301.12597); an own prompt may be either.
- InstructBLIP: huggingface.co/Salesforce/instructblip-vicuna-7b, and the captioning templates of its paper
  (arxiv.org/abs/2305.06500).
- GIT: huggingface.co/microsoft/git-base-coco, unconditional.
- Kosmos-2: huggingface.co/microsoft/kosmos-2-patch14-224. With `<grounding>` in front, answers link phrases to boxes.
- PaliGemma: ai.google.dev/gemma/docs/paligemma/prompt-system-instructions. `caption` is for every checkpoint;
  `describe` and `cap` were taught to the pretrained ones. `{code}` is a language. Its processor adds the line end.
- Florence-2: huggingface.co/microsoft/Florence-2-large (`processing_florence2.py` and the card's notebook). Its
  processor puts the task's sentence in place of the token, as transformers' `Florence2Processor` does. A region is
  four `<loc_0>` … `<loc_999>`: left, top, right and bottom in thousandths.
"""

from serve_app.families.family import CaptionFamily, Style, Task

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
PALIGEMMA = CaptionFamily(
    "paligemma", (Style("short", "caption {code}"), Style("detailed", "describe {code}"), Style("cap", "cap {code}"))
)
FLORENCE2 = CaptionFamily(
    "florence2",
    (
        Style("short", "<CAPTION>"),
        Style("detailed", "<DETAILED_CAPTION>"),
        Style("more detailed", "<MORE_DETAILED_CAPTION>"),
    ),
    tasks=(
        Task("<CAPTION>", "What does the image describe?"),
        Task("<DETAILED_CAPTION>", "Describe in detail what is shown in the image."),
        Task("<MORE_DETAILED_CAPTION>", "Describe with a paragraph what is shown in the image."),
        Task("<OCR>", "What is the text in the image?"),
        Task("<OCR_WITH_REGION>", "What is the text in the image, with regions?", reading="quads"),
        Task("<OD>", "Locate the objects with category name in the image.", reading="boxes"),
        Task("<DENSE_REGION_CAPTION>", "Locate the objects in the image, with their descriptions.", reading="boxes"),
        Task("<REGION_PROPOSAL>", "Locate the region proposals in the image.", reading="bare boxes"),
        Task("<CAPTION_TO_PHRASE_GROUNDING>", "Locate the phrases in the caption: {input}", "text", "phrases"),
        Task("<OPEN_VOCABULARY_DETECTION>", "Locate {input} in the image.", "text", "boxes or polygons"),
        Task("<REFERRING_EXPRESSION_SEGMENTATION>", "Locate {input} in the image with mask", "text", "polygons"),
        Task("<REGION_TO_SEGMENTATION>", "What is the polygon mask of region {input}", "region", "polygons"),
        Task("<REGION_TO_CATEGORY>", "What is the region {input}?", "region"),
        Task("<REGION_TO_DESCRIPTION>", "What does the region {input} describe?", "region"),
        Task("<REGION_TO_OCR>", "What text is in the region {input}?", "region"),
    ),
)
