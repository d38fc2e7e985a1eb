"""Errors of engines name a request's fields as the client does."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serve_app.errors import ServeAppError


@contextmanager
def in_clients_words(names: Mapping[str, str]) -> Iterator[None]:
    """Rename the field that an error inside the block is about.

    An engine knows chat's names only; `names` maps those that this request spells otherwise.
    """
    try:
        yield
    except ServeAppError as error:
        name = names.get(error.param or "")
        if name is None:
            raise
        message = re.sub(rf"\b{error.param}\b", lambda _: name, error.message)
        raise type(error)(message, name, error.retry_after_s) from error
