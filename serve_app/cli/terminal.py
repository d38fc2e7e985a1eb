"""What may be written to a terminal: text from a service or a file name never moves the cursor."""

import os
import re
import sys

# C0 and C1 controls but tab and newline; bidirectional overrides that would reorder what is read
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without control characters, and without bytes that no encoding can write."""
    return _UNSAFE.sub("�", text).encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """`text` on one line without tabs: backslash, tab, newline and carriage return become escapes."""
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


def open_closed_streams() -> None:
    """Let what is printed go nowhere where stdout or stderr was closed, as by `>&-`: Python has none then."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 -- open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def is_stdout_closed() -> bool:
    return sys.stdout.name == os.devnull


def stdout_failure(error: OSError) -> str:
    """A sentence for it. Nothing is printed from now on: the buffer's rest would fail when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    reason = "whoever read it has gone" if isinstance(error, BrokenPipeError) else error.strerror
    return f"stdout can't be written: {reason}"
