"""Files that hold many images. They are yielded in order; what is broken is a failure after those before it."""

import os
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

from serve_app.cli.captioning.inputs import stores, tables, tars
from serve_app.cli.captioning.inputs.image import FoundImage, Uncountable
from serve_app.cli.captioning.inputs.tables import Columns
from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.places import is_address, is_remote


def is_container(path: str) -> bool:
    return _plain(path).endswith(tars.EXTENSIONS + tables.EXTENSIONS)


def spelled_out(argument: str) -> list[str]:
    """The shards of `train-{000..099}.tar`, as WebDataset spells many; or the argument itself."""
    if "{" not in argument or not is_container(argument) or os.path.lexists(argument):
        return [argument]
    return list(library("braceexpand").braceexpand(argument))


def images(path: str, columns: Columns, *, is_counting: bool = False) -> Iterator[FoundImage]:
    """The images of a tar or a table. Counting yields as many, without their bytes; raises `Uncountable`."""
    if is_counting and is_remote(path) and not _plain(path).endswith(tables.EXTENSIONS):
        raise Uncountable(path)
    try:
        with closing(stores.opened(path) if is_remote(path) else open(path, "rb")) as file:
            if _plain(path).endswith(tables.EXTENSIONS):
                yield from tables.images(path, file, columns, is_counting)
            elif is_counting:
                yield from tars.counted(path, file)
            else:
                yield from tars.images(path, file, columns.text)
    except (*tars.ERRORS, *tables.ERRORS) as exc:
        reason = " ".join(str(getattr(exc, "strerror", None) or exc).split())
        yield FoundImage(path, "unreadable_shard", f"it is broken or can't be read: {reason}")


def _plain(path: str) -> str:
    """What an address or a path names, without a query and without the archive that it is in."""
    return (urlsplit(path).path if is_address(path) else path.partition("::")[0]).lower()
