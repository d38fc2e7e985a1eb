"""The requests that this process answers now, by id, so that they can be called off or waited for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from serve_app.access.keys import Key

_PREFIX = re.compile(r"^[a-z]+-")  # of the ids in answers: chatcmpl-…


class Cancellable(Protocol):
    """A request under way, and the key it came with."""

    id: str
    key: Key | None

    def cancel(self) -> None: ...


class Running:
    """Used on one event loop. A client may give several requests one id: they are called off together."""

    def __init__(self) -> None:
        self._requests: dict[str, list[Cancellable]] = {}
        self.is_closing = False

    def close(self) -> int:
        """Refuse new requests from now on. Returns how many still run."""
        self.is_closing = True
        return sum(len(same) for same in self._requests.values())

    @contextmanager
    def listed(self, request: Cancellable) -> Iterator[None]:
        """The request can be called off inside the block."""
        request_id = request.id
        self._requests.setdefault(request_id, []).append(request)
        try:
            yield
        finally:
            same = self._requests[request_id]
            same.remove(request)
            if not same:
                del self._requests[request_id]

    def cancel(self, request_id: str, key: Key | None) -> bool:
        """Call off the requests of this id, plain or as the answer's body has it. Returns whether there was any.

        `key` is whose wish it is: others' requests don't exist for it, unless it is an administrator's.
        """
        plain = _PREFIX.sub("", request_id)
        requests = self._requests.get(request_id) or self._requests.get(plain) or []
        own = [request for request in requests if _may_cancel(key, request)]
        for request in own:
            request.cancel()
        return bool(own)


def _may_cancel(key: Key | None, request: Cancellable) -> bool:
    if key is None or request.key is None:
        return key is request.key
    return key.is_admin or key.name == request.key.name
