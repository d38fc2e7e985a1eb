"""Keeps clients' text from becoming image or control tokens, wherever a chat template puts it.

A tokenizer recognizes its special tokens by their spelling, so `<image>` in a client's text would place an image and
`<|im_start|>` would begin a turn. Each such spelling gets a break after its first character, a word that no client
knows. Templates and processors pass it on, and the tokenizer, changed by `break_reader.py`, encodes the text on both
sides separately, so that no token spans it. Texts without such a spelling don't change.
"""

import json
import os
import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.messages import GenerationRequest, Message, Text, ToolCall

# Of letters and digits, so that no template's filter and no JSON changes it.
BREAK = f"b{secrets.token_hex(12)}k"


class TextGuard:
    """Breaks the spellings of one model's tokens.

    `control` are those that no text of a conversation may become. `placeholders` stand for an image: no raw prompt's
    text may become one either. `split_up` are placeholders that are no token of their own, but several ordinary ones.
    """

    def __init__(
        self, control: Collection[str], placeholders: Collection[str], split_up: Collection[str] = ()
    ) -> None:
        self.placeholders = frozenset(placeholders)
        self._split_up = frozenset(split_up)
        self._of_raw = _Spellings(self.placeholders | self._split_up)
        self._of_chats = _Spellings({*control, *self.placeholders, *self._split_up})

    def request(self, request: GenerationRequest) -> GenerationRequest:
        """The request with breaks in its texts; the same object if none is needed."""
        spellings = self._of_chats if request.raw is None else self._of_raw
        messages = tuple(self._message(message, spellings) for message in request.messages)
        if any(new is not old for new, old in zip(messages, request.messages, strict=True)):
            request = replace(request, messages=messages)
        if request.template_args and (args := self._json(request.template_args, spellings)) != request.template_args:
            request = replace(request, template_args=args)
        return request

    def value(self, value: Any) -> Any:
        """A tool's definition, or any other value of JSON, for a chat template."""
        return self._value(value, self._of_chats)

    def _message(self, message: Message, spellings: "_Spellings") -> Message:
        texts = [part.text for part in message.parts if isinstance(part, Text)]
        broken = self._broken("".join(texts), texts, spellings)
        calls = tuple(self._call(call, spellings) for call in message.tool_calls)
        answered = message.tool_call_id and self._value(message.tool_call_id, spellings)
        if broken == texts and calls == message.tool_calls and answered == message.tool_call_id:
            return message
        left = iter(broken)
        parts = tuple(Text(next(left)) if isinstance(part, Text) else part for part in message.parts)
        return replace(message, parts=parts, tool_calls=calls, tool_call_id=answered)

    def _call(self, call: ToolCall, spellings: "_Spellings") -> ToolCall:
        arguments = self._json(call.arguments, spellings)
        return ToolCall(self._value(call.id, spellings), self._value(call.name, spellings), arguments)

    def _json(self, document: str, spellings: "_Spellings") -> str:
        """Broken in its decoded form, because an escape may hide a spelling. Others refuse invalid JSON.

        Raises `InvalidRequest` if it is nested too deeply to be decoded: a template must not get it unbroken.
        """
        try:
            value = json.loads(document)
            broken = self._value(value, spellings)
            return document if broken == value else json.dumps(broken, ensure_ascii=False)
        except RecursionError as exc:
            raise InvalidRequest("a call's arguments are nested too deeply: send flatter ones", "messages") from exc
        except ValueError:
            return document

    def _value(self, value: Any, spellings: "_Spellings") -> Any:
        if isinstance(value, str):
            return self._broken(value, [value], spellings)[0]
        if isinstance(value, dict):
            return {self._value(key, spellings): self._value(entry, spellings) for key, entry in value.items()}
        return [self._value(entry, spellings) for entry in value] if isinstance(value, list) else value

    def _broken(self, whole: str, texts: list[str], spellings: "_Spellings") -> list[str]:
        """`texts` with breaks. They are searched as one text, because a template may join them."""
        if not spellings.occur_in(whole):
            return texts
        places = sorted({*spellings.seconds(whole), *self._insides(whole)})
        broken, begin = [], 0
        for text in texts:
            end = begin + len(text)
            inside = places[bisect_right(places, begin) : bisect_left(places, end)]
            pieces = [whole[start:stop] for start, stop in pairwise([begin, *inside, end])]
            # a break at its very end stands before the next text's first character
            is_after_break = bisect_right(places, begin) > bisect_left(places, begin)
            broken.append((BREAK if is_after_break else "") + BREAK.join(pieces))
            begin = end
        return broken

    def _insides(self, text: str) -> Iterator[int]:
        for word in self._split_up:
            for match in re.finditer(re.escape(word), text):
                yield from range(match.start() + 1, match.end())


def text_guard(tokenizer: Any, placeholders: Iterable[str], *, has_turns: bool) -> TextGuard:
    """The guard of a model with this tokenizer. `has_turns`: its prompts have turns, which could be forged.

    Prompts without turns are bare texts, in which some models' control tokens say something: Florence-2's places,
    Kosmos-2's `<grounding>`.
    """
    special = special_tokens(tokenizer)
    words = {word for word in placeholders if len(word) > 1}
    tokens = words & (special | set(tokenizer.get_added_vocab()))
    return TextGuard(special if has_turns else (), tokens, words - tokens)


def special_tokens(tokenizer: Any) -> set[str]:
    """How the tokens are spelled that a tokenizer marks as special.

    `<tool_call>` and its like aren't among them; line ends and single characters control nothing.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    words = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    return {word for word in words if len(word) > 1 and word.strip()}


def without_breaks(text: str) -> str:
    return text.replace(BREAK, "")


class _Spellings:
    """Words, and where they begin."""

    def __init__(self, words: Collection[str]) -> None:
        self._any = _alternatives(words)
        self._find = re.compile(self._any).search
        self._starts = re.compile(f"(?={self._any})")

    def occur_in(self, text: str) -> bool:
        return bool(self._any) and self._find(text) is not None

    def seconds(self, text: str) -> Iterator[int]:
        """The places of the second characters of all that occur, overlapping ones too."""
        return (match.start() + 1 for match in self._starts.finditer(text))


def _alternatives(words: Collection[str]) -> str:
    """An expression that finds one of the words in one look at each character, however many they are."""
    by_head: dict[str, set[str]] = {}
    for word in words:
        by_head.setdefault(word[0], set()).add(word)
    alternatives = []
    for group in by_head.values():
        start = os.path.commonprefix(list(group))  # noqa: RUF071 -- characters, not path components
        tails = {word[len(start) :] for word in group}
        alternatives.append(re.escape(start) + ("" if "" in tails else f"(?:{_alternatives(tails)})"))
    return "|".join(alternatives)
