"""One run writes to a place at a time. The lock ends with the process, however that ends."""

import fcntl

from serve_app.cli.errors import USAGE, CliError


def lock(fd: int, path: str) -> None:
    """Raises `CliError` where another run holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise CliError(
            f"another run is writing to {path}: wait until it ends, or choose another --output", USAGE
        ) from exc
    except OSError:
        pass  # a file system without locks: two runs at once would double rows, never tear them
