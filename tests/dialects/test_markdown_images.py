"""Images in a prompt's markdown: which text is one, and that no text takes long to look at."""

import pytest

from serve_app.dialects.markdown_images import MAX_LOOKS, split_images
from serve_app.errors import InvalidRequest
from serve_app.images.gate import ImageUrl

URL = "https://a.example/x.png?b=1"


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("no image", ["no image"]),
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
def test_a_prompt_is_split_at_its_images(prompt: str, pieces: list[str | ImageUrl]) -> None:
    assert split_images(prompt, "inputs") == pieces


@pytest.mark.parametrize("piece", ["![", "![](", '![](x "', "![a", "](", "![](x ", '"', "![]((", " "])
def test_a_hostile_prompt_is_looked_at_once(piece: str) -> None:
    """A hundred thousand of them: were each looked at from each place, this would take hours."""
    many = piece * (MAX_LOOKS - 1)
    assert "".join(str(part) for part in split_images(many, "inputs")) == many
    assert split_images("![](x" + many, "inputs")


def test_there_are_only_so_many_looks() -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: the text has .* more than 100,000 times"):
        split_images("![](http://a" * (MAX_LOOKS + 1), "inputs")
