"""The gallery's page: what strangers write stays text."""

import json
import re
from html.parser import HTMLParser
from typing import Any

from serve_app.gallery.page import Entry, findings_in, page

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


class Tags(HTMLParser):
    """The names of a page's elements and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    return parser.seen


def data_of(html: str) -> dict[str, Any]:
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert embedded
    value: dict[str, Any] = json.loads(embedded[1])
    return value


def test_no_text_adds_an_element() -> None:
    hostile = page(HOSTILE, [Entry(HOSTILE, HOSTILE, findings=(HOSTILE,)), Entry(HOSTILE, error=HOSTILE)])
    assert tags(hostile) == tags(page("", []))
    assert data_of(hostile) == {
        "title": HOSTILE,
        "rows": [
            {"file": HOSTILE, "caption": HOSTILE, "error": None, "findings": [HOSTILE], "thumbnail": None},
            {"file": HOSTILE, "caption": None, "error": HOSTILE, "findings": [], "thumbnail": None},
        ],
    }


def test_any_text_is_kept_even_the_pages_own_mark() -> None:
    html = page("@DATA@", [Entry("a\udcff@DATA@", "b\ud800\u2028", thumbnail=b"\xff\xd8")])
    html.encode()
    assert data_of(html)["rows"][0] == {
        "file": "a?@DATA@",
        "caption": "b\ud800\u2028",
        "error": None,
        "findings": [],
        "thumbnail": "data:image/jpeg;base64,/9g=",
    }


def test_the_guards_report_goes_before_what_the_text_shows() -> None:
    report = {"findings": ["loop"]}
    assert findings_in("This image shows a sea", None, report, is_cut=True, lists_tags=False) == ("loop",)
    seen = findings_in("This image shows a sea", None, None, is_cut=True, lists_tags=False)
    assert seen == ("truncated", "meta_phrase")
