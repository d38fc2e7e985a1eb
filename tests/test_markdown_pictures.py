"""Pictures in a prompt's markdown: which text is one, and that no text takes long to look at."""

import pytest

from serve_app.api.markdown_pictures import split_pictures
from serve_app.images import ImageUrl

URL = "https://a.example/x.png?b=1"


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("no picture", ["no picture"]),
        (f"![]({URL})", [ImageUrl(URL)]),
        (f"a ![]({URL}) b", ["a ", ImageUrl(URL), " b"]),
        (
            f"![one]({URL})![two](data:image/png;base64,AA==)\n",
            [ImageUrl(URL), ImageUrl("data:image/png;base64,AA=="), "\n"],
        ),
        (f'![]( {URL} "a title" )', [ImageUrl(URL)]),
        (f"[a link]({URL})", [f"[a link]({URL})"]),
        (f"! []({URL})", [f"! []({URL})"]),
        (f"![]({URL}", [f"![]({URL}"]),
        ("![]()", ["![]()"]),
        ("![](relative.png)", [ImageUrl("relative.png")]),  # for the image gate to refuse
    ],
)
def test_a_prompt_is_split_at_its_pictures(prompt: str, pieces: list[str | ImageUrl]) -> None:
    assert split_pictures(prompt) == pieces


@pytest.mark.parametrize("piece", ["![", "![](", '![](x "', "![a", "](", "![](x ", '"', "![]((", " "])
def test_a_hostile_prompt_is_looked_at_once(piece: str) -> None:
    """A million of them: were each looked at from each place, this would take days."""
    assert "".join(str(part) for part in split_pictures(piece * 1_000_000)) == piece * 1_000_000
    assert split_pictures("![](x" + piece * 1_000_000)
