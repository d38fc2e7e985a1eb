"""What may be written to a terminal: text from a service or a file name never moves the cursor."""

import re

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
