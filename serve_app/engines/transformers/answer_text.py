"""One answer's text as its tokens come: whole characters only, and never a part of a stop string.

Knows nothing of models or batches. `decode` turns token ids into text without special tokens.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

_UNFINISHED = "\ufffd"  # what decoders write for bytes that aren't a whole character (yet)


class AnswerText:
    """Takes token ids one by one and gives text that is final. `stopped_by` is the stop string that ended the answer.

    With `keeps_stop` the text ends with it, and no text that may become a stop string is held back.
    """

    def __init__(self, decode: Decode, stop: Sequence[str], keeps_stop: bool = False) -> None:
        self._tokens = _TokenText(decode)
        self._stop = [s for s in stop if s]
        self._keeps_stop = keeps_stop
        self._held = ""  # the end of the text that may begin a stop string; already given with `keeps_stop`
        self.stopped_by: str | None = None

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def add(self, token: int, may_stop: bool = True) -> str:
        """The text that this token makes final; often empty. Without `may_stop` no stop string begins in it."""
        text = self._tokens.add(token)
        return self._release(text) if may_stop else text

    def finish(self) -> str:
        """The text that was still held back. The answer ends here."""
        text = self._release(self._tokens.finish())
        if not self.is_stopped and not self._keeps_stop:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if self.is_stopped or not self._stop:
            return "" if self.is_stopped else new
        text, num_given = self._held + new, len(self._held) if self._keeps_stop else 0
        match = min(((at, s) for s in self._stop if (at := text.find(s)) >= 0), default=None)
        if match:
            at, self.stopped_by = match
            self._held = ""
            return text[num_given : at + len(self.stopped_by)] if self._keeps_stop else text[:at]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return new if self._keeps_stop else text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _TokenText:
    """Incremental decoding with a sliding window, as in TGI and vLLM.

    The new text is what decoding the window with the new tokens adds to decoding it without them: a token
    alone may decode otherwise (leading spaces, bytes of one character).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._shown: list[int] = []  # the window's tokens whose text is out
        self._shown_text = ""
        self._new: list[int] = []

    def add(self, token: int) -> str:
        self._new.append(token)
        text = self._decode(self._shown + self._new)
        if len(text) <= len(self._shown_text) or text.endswith(_UNFINISHED):
            return ""
        return self._show(text)

    def finish(self) -> str:
        return self._show(self._decode(self._shown + self._new)) if self._new else ""

    def _show(self, text: str) -> str:
        fresh = text[len(self._shown_text) :]
        self._shown, self._new = self._new, []
        self._shown_text = self._decode(self._shown)
        return fresh
