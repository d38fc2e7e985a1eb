"""What a cache may hold of a request: keys, from the most telling to the least.

The whole conversation up to each turn comes first, then the request's images. An instruction alone is no key where
there are images, because every caption has the same one.
"""

import hashlib

from serve_app.messages import GenerationRequest, Message, RgbImage, Text

_NUM_SAMPLED_ROWS = 32  # of an image: enough to tell images apart, at a fraction of the cost of all


_DIGEST_BYTES = 12


def cache_keys(request: GenerationRequest) -> list[bytes]:
    """What a cache may hold of this request, the most telling first. Keys of different models differ."""
    conversation = hashlib.blake2b(request.model.encode(), digest_size=_DIGEST_BYTES)
    if request.raw:
        conversation.update(str(request.raw.tokens).encode())
    turns: list[bytes] = []
    images: list[bytes] = []
    has_images = bool(request.images)
    for message in request.messages:
        images += _add(conversation, message, request.model)
        if message.role != "system" and bool(images) == has_images:
            turns.append(conversation.digest())
    return [*reversed(turns), *reversed(images)]


def _add(conversation: "hashlib.blake2b", message: Message, model: str) -> list[bytes]:
    """Feed a turn to the conversation's hash; the digests of its images."""
    images: list[bytes] = []
    conversation.update(f"\0{message.role}\0".encode())
    for part in message.parts:
        if isinstance(part, Text):
            conversation.update(b"\1" + part.text.encode(errors="replace"))
        else:
            images.append(_image_digest(part, model))
            conversation.update(b"\2" + images[-1])
    return images


def _image_digest(image: RgbImage, model: str) -> bytes:
    stride = 3 * image.width
    step = max(1, image.height // _NUM_SAMPLED_ROWS)
    digest = hashlib.blake2b(f"{model}\0{image.width}x{image.height}".encode(), digest_size=_DIGEST_BYTES)
    pixels = memoryview(image.rgb)
    for row in range(0, image.height, step):
        digest.update(pixels[row * stride : (row + 1) * stride])
    return digest.digest()
