"""The sentences in which a file is refused, whichever process decodes it."""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage
from serve_app.images.formats import accepted, extra_formats
from serve_app.images.kinds import kind_of
from serve_app.images.pixels import PILLOW_ERRORS


@contextmanager
def in_our_words(data: bytes, config: ImageConfig) -> Iterator[None]:
    """What Pillow raises while it opens and decodes `data`, as `InvalidImage` or `ImageTooLarge`."""
    try:
        yield
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(
            f"the image has more than {config.max_image_pixels} pixels, the limit: send it smaller"
        ) from exc
    except UnidentifiedImageError as exc:
        raise InvalidImage(f"this looks like {_looks_like(data)}: {accepted()}") from exc
    except PILLOW_ERRORS as exc:
        raise InvalidImage(f"the image is broken or cut short ({len(data)} bytes came): send the whole file") from exc


def check_pixels(size: tuple[int, int], config: ImageConfig) -> None:
    width, height = size
    if width * height > config.max_image_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels "
            f"and the limit is {config.max_image_pixels}: send it smaller"
        )


def _looks_like(data: bytes) -> str:
    kind = kind_of(data)
    if kind is None:
        return "no image"
    is_taken = kind.media_type and kind.extra_format in (None, *extra_formats())
    return f"a broken {kind.name}" if is_taken else kind.name
