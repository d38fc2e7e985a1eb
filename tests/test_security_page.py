"""The security page's settings and counts are the code's own."""

import json
import re
from pathlib import Path

import pytest

from serve_app.config.http import ImageConfig
from serve_app.images.formats import FORMATS
from tests.images.test_hostile_images import ALL_BOMBS_MIB, NUM_HOSTILE_IMAGES
from tests.images.test_hostile_urls import IN_A_HEADER, NUM_HOSTILE_URLS

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text()


def test_every_image_setting_stands_there_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGE.partition("### Settings")[2], re.MULTILINE)
    defaults = {name: json.dumps(value) for name, value in ImageConfig().model_dump(mode="json").items()}
    assert {name: value for name, value in rows if name in defaults} == defaults


@pytest.mark.skipif("AVIF" not in FORMATS, reason="the counts are those of a Pillow with AVIF")
def test_the_counts_of_hostile_cases_are_true() -> None:
    text = " ".join(PAGE.split())
    assert f"{NUM_HOSTILE_URLS} hostile URLs" in text
    assert f"{len(IN_A_HEADER)} of the spellings" in text
    assert f"{NUM_HOSTILE_IMAGES} hostile or odd images" in text
    assert f"less than {ALL_BOMBS_MIB} MiB" in text


def test_every_kind_of_fault_names_a_test_that_exists() -> None:
    section = PAGE.partition("## Faults")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!what fails|---)(.+) \|$", section, re.MULTILINE)
    assert len(rows) >= 15
    assert f"These {len(rows)} kinds" in " ".join(section.split())
    for row in rows:
        kind, sees, after, lost, test = row.split(" | ")
        assert all((kind, sees, after, lost))
        file, _, name = test.strip("`").partition("::")
        assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), row
