"""One answer while it is generated: token ids in, pieces of text out, and the reason why it ends.

A piece never ends inside a character, and never shows a stop string or what may become one.
"""

from collections.abc import Callable, Sequence

from serve_app.messages import FinishReason

Decode = Callable[[Sequence[int]], str]


class AnswerText:
    """The text of a growing list of token ids. `decode` leaves special tokens out."""

    def __init__(self, decode: Decode, stop: tuple[str, ...], eos_ids: frozenset[int], max_tokens: int) -> None:
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._decode = decode
        self._stop = stop
        self._eos_ids = eos_ids
        self._max_tokens = max_tokens
        self._ids: list[int] = []
        self._shown_from, self._shown_to = 0, 0  # ids whose text is out, and the few that give them context
        self._held = ""

    def add(self, token_id: int) -> str:
        """The text that this token makes certain; sets `finish_reason` where the answer ends with it."""
        self.num_tokens += 1
        if token_id in self._eos_ids:
            self.finish_reason = "stop"
            return self._flush()
        self._ids.append(token_id)
        is_last = self.num_tokens >= self._max_tokens
        text = self._held + self._new_text(is_last)
        cut = min((at for at in (text.find(word) for word in self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.finish_reason, self._held = "stop", ""
            return text[:cut]
        num_held = 0 if is_last else max((_overlap(text, word) for word in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        if is_last:
            self.finish_reason = "length"
        return text[: len(text) - num_held]

    def _new_text(self, is_last: bool) -> str:
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        now = self._decode(self._ids[self._shown_from :])
        if now.endswith("\ufffd") and not is_last:  # the next token may complete the character
            return ""
        self._shown_from, self._shown_to = self._shown_to, len(self._ids)
        return now[len(before) :]

    def _flush(self) -> str:
        text, self._held = self._held + self._new_text(is_last=True), ""
        return text


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` begin `word`."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
