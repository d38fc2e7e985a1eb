"""Images in a prompt as TGI's clients write them: `![](https://…)` or `![](data:image/png;base64,…)`.

Knows nothing of fetching: the image gate judges the addresses.
"""

import re
from collections.abc import Iterable, Iterator

from serve_app.errors import InvalidRequest
from serve_app.exchange.body import MAX_TEXT_CHARACTERS
from serve_app.images.gate import ImageUrl
from serve_app.messages import RgbImage, Text

# Linear: no character can be matched by two neighbouring parts of the pattern.
MARKDOWN = re.compile(r'!\[[^\[\]]*\]\(\s*([^()\s"]+)(?:\s+"[^"]*")?\s*\)')
MAX_LOOKS = 100_000  # a fifth of a second for the regular expression
# As TGI itself looks for them: without a title, and an address that can only be an image's. A text about an image,
# such as a page of documentation that is to be gone on with, stays a text.
UNTITLED = re.compile(r"!\[\]\(((?:https?://|data:image/)[^()\s]+)\)")


def split_images(prompt: str, field: str, looks: re.Pattern[str] = MARKDOWN) -> list[str | ImageUrl]:
    """Texts and addresses in their order; texts between them are kept as they are, empty ones left out.

    Raises `InvalidRequest` about the `field` where more would have to be looked at than any text has.
    """
    if prompt.count("![") > MAX_LOOKS:
        raise InvalidRequest(f"{field}: the text has '![' more than {MAX_LOOKS:,} times: send less of it", field)
    pieces: list[str | ImageUrl] = []
    end = 0
    begin = prompt.find("![")
    while begin >= 0:  # one search over a hostile prompt would hold Python's lock too long
        if match := looks.match(prompt, begin):
            pieces += [prompt[end:begin], ImageUrl(match[1])]
            end = match.end()
        begin = prompt.find("![", max(end, begin + 1))
    return [piece for piece in (*pieces, prompt[end:]) if piece]


def require_short_texts(pieces: Iterable[str | ImageUrl], field: str) -> None:
    """Raise `InvalidRequest` where a text between the images is longer than any that a model reads."""
    for piece in pieces:
        if isinstance(piece, str) and len(piece) > MAX_TEXT_CHARACTERS:
            raise InvalidRequest(
                f"{field}: the text has {len(piece)} characters and the limit is {MAX_TEXT_CHARACTERS}: shorten it",
                field,
            )


def with_images(pieces: list[str | ImageUrl], images: Iterator[RgbImage]) -> tuple[Text | RgbImage, ...]:
    """The message's parts: each address's image in its place."""
    return tuple(Text(piece) if isinstance(piece, str) else next(images) for piece in pieces)
