"""What a cache may hold of a request: keys, from the most telling to the least.

The whole conversation up to each turn comes first, then the request's images. An instruction alone is no key where
there are images, because every caption has the same one.
"""

import hashlib

from serve_app.messages import GenerationRequest, Message, Picture, Text

_NUM_SAMPLED_ROWS = 32  # of a picture: enough to tell pictures apart, at a fraction of the cost of all


_DIGEST_BYTES = 12


def cache_keys(request: GenerationRequest) -> list[bytes]:
    """What a cache may hold of this request, the most telling first. Keys of different models differ."""
    conversation = hashlib.blake2b(request.model.encode(), digest_size=_DIGEST_BYTES)
    if request.raw:
        conversation.update(str(request.raw.tokens).encode())
    turns: list[bytes] = []
    pictures: list[bytes] = []
    has_pictures = bool(request.pictures)
    for message in request.messages:
        pictures += _add(conversation, message, request.model)
        if message.role != "system" and bool(pictures) == has_pictures:
            turns.append(conversation.digest())
    return [*reversed(turns), *reversed(pictures)]


def _add(conversation: "hashlib.blake2b", message: Message, model: str) -> list[bytes]:
    """Feed a turn to the conversation's hash; the digests of its pictures."""
    pictures: list[bytes] = []
    conversation.update(f"\0{message.role}\0".encode())
    for part in message.parts:
        if isinstance(part, Text):
            conversation.update(b"\1" + part.text.encode(errors="replace"))
        else:
            pictures.append(_picture_digest(part, model))
            conversation.update(b"\2" + pictures[-1])
    return pictures


def _picture_digest(picture: Picture, model: str) -> bytes:
    stride = 3 * picture.width
    step = max(1, picture.height // _NUM_SAMPLED_ROWS)
    digest = hashlib.blake2b(f"{model}\0{picture.width}x{picture.height}".encode(), digest_size=_DIGEST_BYTES)
    pixels = memoryview(picture.rgb)
    for row in range(0, picture.height, step):
        digest.update(pixels[row * stride : (row + 1) * stride])
    return digest.digest()
