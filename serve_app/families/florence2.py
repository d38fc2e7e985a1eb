"""Florence-2's task tokens, and the sentence that its processor puts in place of each.

From huggingface.co/microsoft/Florence-2-large (`processing_florence2.py` and the card's notebook), as transformers'
`Florence2Processor` has them. A region is four `<loc_0>` … `<loc_999>`: left, top, right and bottom in thousandths.
"""

from serve_app.families.family import CaptionFamily, Style, Task

_TASKS = (
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
)

FLORENCE2 = CaptionFamily(
    "florence2",
    (
        Style("short", "<CAPTION>"),
        Style("detailed", "<DETAILED_CAPTION>"),
        Style("more detailed", "<MORE_DETAILED_CAPTION>"),
    ),
    tasks=_TASKS,
)
