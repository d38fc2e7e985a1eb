"""One HTML page of entries, which opens from disk, needs no network and takes no text for HTML.

Knows nothing of where images and captions come from.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from serve_app.dialects.captions.quality import Sight, findings


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the gallery: its caption, or the reason why it has none. `thumbnail` is a JPEG file's bytes."""

    name: str
    caption: str | None = None
    error: str | None = None
    findings: tuple[str, ...] = ()
    thumbnail: bytes | None = None

    def as_json(self) -> dict[str, Any]:
        image = base64.b64encode(self.thumbnail).decode() if self.thumbnail else None
        return {
            "file": self.name.encode("utf-8", "replace").decode(),
            "caption": self.caption,
            "error": self.error,
            "findings": list(self.findings),
            "thumbnail": image and f"data:image/jpeg;base64,{image}",
        }


def page(title: str, entries: Sequence[Entry]) -> str:
    """The page as HTML. Its texts stand in JSON, where no `<` is left, and the page's script shows them as texts."""
    data = json.dumps({"title": title, "rows": [entry.as_json() for entry in entries]})
    html = resources.files("serve_app.gallery").joinpath("page.html").read_text("utf-8")
    return html.replace("@DATA@", data.replace("<", "\\u003c"))


def findings_in(
    caption: str, prompt: str | None, guard: dict[str, Any] | None, *, is_cut: bool, lists_tags: bool
) -> tuple[str, ...]:
    """What the guard said in its report, or what it would have seen in the text alone."""
    if guard:
        return tuple(guard.get("findings") or ())
    return findings(Sight(caption, prompt or "", is_cut, lists_tags))
