"""Tells a store that doesn't answer from one that refuses, by the errors of fsspec's libraries."""

import errno
import socket
import ssl

# System errors for a network or a machine that isn't there.
_NUMBERS = frozenset({
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ESTALE,
})  # fmt: skip
# The same as classes of botocore, aiohttp, requests, httpx, google-auth, azure-core and paramiko.
_NAMES = frozenset({
    "HTTPClientError", "ClientConnectionError", "TransportError", "ConnectionError", "Timeout", "ServiceRequestError",
    "ServiceResponseError", "NewConnectionError", "SSHException",
})  # fmt: skip
_REFUSALS = (ssl.SSLError, PermissionError, FileNotFoundError)
_STATUSES = frozenset({502, 503, 504})  # of a proxy whose store doesn't answer


def is_away(exc: BaseException | None) -> bool:
    """Whether nobody answered. A refusal, or an answer that can't be trusted, doesn't count."""
    while exc is not None:
        names = {kind.__name__ for kind in type(exc).__mro__}
        if isinstance(exc, _REFUSALS) or any("SSL" in name for name in names):
            return False
        if isinstance(exc, ConnectionError | TimeoutError | socket.gaierror) or names & _NAMES:
            return True
        if (isinstance(exc, OSError) and exc.errno in _NUMBERS) or _status(exc) in _STATUSES:
            return True
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    return False


def _status(exc: BaseException) -> object:
    """The HTTP status of the error, if its library keeps it."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore's
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((exc, "status"), (exc, "status_code"), (exc, "code"), (response, "status_code")):
        if isinstance(status := getattr(holder, name, None), int):
            return status
    return None
