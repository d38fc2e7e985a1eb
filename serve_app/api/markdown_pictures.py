"""Pictures in a prompt as TGI's clients write them: `![](https://…)` or `![](data:image/png;base64,…)`.

Knows nothing of fetching: whatever address stands there is for the image gate to judge.
"""

import re
from collections.abc import Iterator

from serve_app.images import ImageUrl
from serve_app.messages import Picture, Text

# No part of them can be repeated from two places, so that a hostile prompt costs one look at each character.
MARKDOWN = re.compile(r'!\[[^\[\]]*\]\(\s*([^()\s"]+)(?:\s+"[^"]*")?\s*\)')
# As TGI itself looks for them: without a title, and an address that can only be a picture's. A text about a picture,
# such as a page of documentation that is to be gone on with, stays a text.
UNTITLED = re.compile(r"!\[\]\(((?:https?://|data:image/)[^()\s]+)\)")


def split_pictures(prompt: str, looks: re.Pattern[str] = MARKDOWN) -> list[str | ImageUrl]:
    """Texts and addresses in their order; texts between them are kept as they are, empty ones left out."""
    pieces: list[str | ImageUrl] = []
    end = 0
    for found in looks.finditer(prompt):
        pieces += [prompt[end : found.start()], ImageUrl(found[1])]
        end = found.end()
    return [piece for piece in (*pieces, prompt[end:]) if piece]


def with_pictures(pieces: list[str | ImageUrl], pictures: Iterator[Picture]) -> tuple[Text | Picture, ...]:
    """The message's parts: each address's picture in its place."""
    return tuple(Text(piece) if isinstance(piece, str) else next(pictures) for piece in pieces)
