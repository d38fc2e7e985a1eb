"""Grounded answers: as transformers' own processors read them, and whatever a model may write instead."""

import pytest
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor
from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes

from serve_app.families.family import Reading
from serve_app.families.regions import Region, read_regions
from tests.tiny_models import tokenizer

SNOWMAN = (
    "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> warming "
    "himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>."
)
TWO_DOGS = (
    "<phrase> two dogs</phrase><object><patch_index_0100><patch_index_0500></delimiter_of_multi_objects/>"
    "<patch_index_0120><patch_index_0520></object> play<object><patch_index_0033><patch_index_0033></object>"
)
OD = (
    "</s><s>car<loc_54><loc_375><loc_906><loc_707>door<loc_710><loc_276><loc_908><loc_537>wheel<loc_708><loc_557>"
    "<loc_865><loc_704><loc_147><loc_563><loc_305><loc_705></s>"
)
PROPOSALS = "</s><s><loc_53><loc_334><loc_933><loc_775><loc_711><loc_203><loc_906><loc_546></s>"
OCR = (
    "</s><s>Hello<loc_100><loc_100><loc_200><loc_100><loc_200><loc_200><loc_100><loc_200>"
    "World<loc_300><loc_300><loc_400><loc_300><loc_400><loc_400><loc_300><loc_400></s>"
)
MASK = "<loc_279><loc_379><loc_282><loc_379><loc_290><loc_373><loc_293><loc_373><loc_298><loc_369><loc_301>"
TWO_MASKS = "a cat<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><sep><loc_7><loc_8><loc_9><loc_10></poly>"
SIZE = (1000, 1000)
TASKS: dict[str, tuple[str, Reading, str]] = {
    "<OD>": (OD, "boxes", "description_with_bboxes"),
    "<REGION_PROPOSAL>": (PROPOSALS, "bare boxes", "bboxes"),
    "<CAPTION_TO_PHRASE_GROUNDING>": (OD, "phrases", "phrase_grounding"),
    "<OCR_WITH_REGION>": (OCR, "quads", "ocr"),
    "<REGION_TO_SEGMENTATION>": (MASK, "polygons", "polygons"),
    "<OPEN_VOCABULARY_DETECTION>": (OD, "boxes or polygons", "description_with_bboxes_or_polygons"),
    "of outlines": (TWO_MASKS, "boxes or polygons", "description_with_bboxes_or_polygons"),
}


@pytest.mark.parametrize("task", TASKS)
def test_florences_answers_are_read_as_its_own_processor_reads_them(task: str) -> None:
    text, reading, kind = TASKS[task]
    theirs = Florence2PostProcessor({kind: {}}, tokenizer(None))(text, image_size=SIZE, parse_tasks=kind)[kind]
    _, regions = read_regions(text, reading)
    told = [(region.label or "", _pixels(region)) for region in regions]
    expected = [
        (one.get("cat_name", one.get("text", "")), places)
        for one in theirs
        for places in (one["bbox"] if kind == "phrase_grounding" else [_places(one)])
    ]
    assert told == expected
    assert expected


def _places(one: dict[str, list[int]]) -> list[int]:
    return one.get("polygons") or one.get("quad_box") or one["bbox"]


def _pixels(region: Region) -> list[int] | list[list[int]]:
    if region.polygons is not None:
        return [[int(share * 1000) for share in outline] for outline in region.polygons]
    return [int(share * 1000) for share in region.box or region.quad or ()]


def test_a_grounded_caption_is_its_labels() -> None:
    caption, regions = read_regions(OD, "boxes")
    assert caption == "car, door, wheel"
    assert regions[0].as_json() == {"label": "car", "box": (0.0545, 0.3755, 0.9065, 0.7075)}


@pytest.mark.parametrize("text", [SNOWMAN, TWO_DOGS, "plain words", "<phrase> a cat</phrase> sits"])
def test_kosmos_answers_are_read_as_its_own_processor_reads_them(text: str) -> None:
    caption, entities = clean_text_and_extract_entities_with_bboxes(text)
    ours, regions = read_regions(text, "entities")
    assert ours == caption
    named = [entity for entity in entities if not entity[0].startswith("<patch")]
    assert [(r.label, r.span, r.box) for r in regions if r.label] == [
        (label, span, box) for label, span, boxes in named for box in boxes
    ]
    assert all(caption[slice(*region.span)] == region.label for region in regions if region.span)


def test_a_place_without_a_phrase_has_no_label() -> None:
    _, regions = read_regions(TWO_DOGS, "entities")
    assert [region.label for region in regions] == ["two dogs", "two dogs", None]


@pytest.mark.parametrize("reading", ["boxes", "bare boxes", "quads", "polygons", "boxes or polygons", "entities"])
@pytest.mark.parametrize(
    "text",
    [
        "", "<", "<<<<", "<loc_>", "<loc_99999>", "car<loc_1><loc_2><loc_3>", "<loc_1>" * 7, "</object></phrase>",
        "<phrase><object><patch_index_9999><patch_index_0001></object>", "<object>", "<sep><sep><poly></poly>",
        "<s></s>",
        "a < b > c", "<object><patch_index_0001></object>",
    ],
)  # fmt: skip
def test_whatever_was_written_is_read_without_an_error(text: str, reading: Reading) -> None:
    caption, regions = read_regions(text, reading)
    assert isinstance(caption, str)
    assert all(0 <= place <= 1 for region in regions for place in region.box or region.quad or ())


@pytest.mark.parametrize(
    "piece", ["<", "<loc_1>", "<a", "car<loc_1>", "<phrase>", "<object><patch_index_0001>", "<poly>"]
)
@pytest.mark.parametrize("reading", ["boxes", "polygons", "entities"])
def test_a_hundred_thousand_characters_are_read_at_once(piece: str, reading: Reading) -> None:
    """A quadratic reading would take minutes, and the tests' time limit would end it."""
    read_regions(piece * (100_000 // len(piece)), reading)
