"""The names of files: which are images, by their extensions, and which is our own."""

import os

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".avif": "image/avif",
}
IMAGE_EXTENSIONS = frozenset(MEDIA_TYPES) | {".jfif", ".jpe", ".jif", ".apng", ".mpo", ".heic", ".heif", ".jxl"}
LEDGER_NAME = "serve-app-captions.jsonl"  # our own file in each folder of a run that writes text files


def extension_of(name: str) -> str:
    """The extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()
