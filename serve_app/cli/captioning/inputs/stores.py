"""Files in object stores and archives, by fsspec: `s3://bucket/folder`, `gs://…`, `zip://*.png::photos.zip`."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from serve_app.cli.errors import USAGE, CliError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder of a store, by its whole URL."""

    url: str
    is_folder: bool

    @property
    def name(self) -> str:
        return self.url.partition("::")[0].rstrip("/").rpartition("/")[2]


class Store:
    """What a URL leads to. Raises `CliError` where no library knows its kind of address."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self._files, self._path = url_to_fs(url)
        except (ImportError, ValueError) as exc:
            reason = " ".join(str(exc).split())
            raise CliError(f"{url} can't be opened ({reason}): install fsspec's library for it", USAGE) from exc
        except Exception as exc:  # each store's library has errors of its own
            raise CliError(f"{url} can't be opened: {_reason(exc)}", USAGE) from exc
        _, chain, self._rest = url.partition("::")
        self._rest = chain + self._rest
        self._url = url

    def matches(self) -> Iterator[Entry]:
        """What is at the URL, or else what its pattern means, sorted. Raises `CliError` where nothing can be seen."""
        try:
            if self._files.isfile(self._path):
                yield Entry(self._url, is_folder=False)
            elif self._files.isdir(self._path):
                yield Entry(self._url, is_folder=True)
            elif any(sign in self._path for sign in "*?["):
                details = self._files.glob(self._path, detail=True)
                for path in sorted(details):
                    yield self._entry(path, details[path])
        except Exception as exc:  # a boundary: each library has errors of its own
            raise CliError(f"{self._url} can't be read: {_reason(exc)}", USAGE) from exc

    def entries(self) -> list[Entry]:
        """What a folder holds, sorted by name. Raises `OSError`."""
        with _as_os_error():
            details = self._files.ls(self._path, detail=True)
        top = self._path.rstrip("/")
        entries = (self._entry(detail["name"], detail) for detail in details if detail["name"].rstrip("/") != top)
        return sorted(entries, key=lambda entry: entry.name)

    def _entry(self, path: str, detail: dict[str, Any]) -> Entry:
        return Entry(self._files.unstrip_protocol(path) + self._rest, detail["type"] == "directory")


def read(url: str, most: int) -> bytes:
    """At most so many bytes of a file. Raises `OSError`."""
    from fsspec.core import url_to_fs

    with _as_os_error():
        files, path = url_to_fs(url)
        return cast(bytes, files.cat_file(path, 0, most))


def opened(url: str) -> BinaryIO:
    """The file, to be read from its beginning. Raises `OSError`."""
    from fsspec.core import url_to_fs

    with _as_os_error():
        files, path = url_to_fs(url)
        return cast(BinaryIO, files.open(path, "rb"))


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # a boundary: each library has errors of its own
        raise OSError(errno.EIO, _reason(exc)) from exc


def _reason(exc: Exception) -> str:
    text = " ".join(str(getattr(exc, "strerror", None) or exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
