"""What an engine calls a request's fields, in the words of the client that sent them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serve_app.errors import ServeAppError


@contextmanager
def in_clients_words(names: Mapping[str, str]) -> Iterator[None]:
    """A failure inside the block that is about one of these fields calls it as the client does.

    An engine knows chat's names alone; `names` are those that have another one in this request.
    """
    try:
        yield
    except ServeAppError as error:
        name = names.get(error.param or "")
        if name is None:
            raise
        message = re.sub(rf"\b{error.param}\b", lambda _: name, error.message)
        raise type(error)(message, name, error.retry_after_s) from error
