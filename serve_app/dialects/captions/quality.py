"""What can be wrong with a caption, seen from its text alone: loops, echoes, refusals and the like.

Pure functions, linear in the text, which may be anything that a model wrote. They find what is plainly wrong: a
caption that passes isn't thereby right.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from serve_app.families.languages import LANGUAGES, Language, Script

Finding = Literal["empty", "refusal", "loop", "prompt_echo", "wrong_language", "truncated", "meta_phrase"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)  # the worst first

_MOST_SEEN = 20_000  # characters and words that are looked at one by one
_LONGEST_UNIT = 60  # words or characters that a loop repeats
_LEAST_ECHO = 4  # words: a shorter prompt is what a caption may well begin with
_LEAST_TAGS = 6  # of which most are repeated
_LONGEST_NOTHING = 100  # characters
_LONGEST_OPENING = 6  # words of a prompt with which no caption begins by chance
_WORD = re.compile(r"\w+")
_NOTHING = re.compile(
    r"""\W* (?: n / ?a | null | none | undefined | nil | not\ (?:available|applicable)
      | no\ (?:caption|description|image|picture|tags|text|answer)(?:\ (?:available|provided|given|found))? ) \W*""",
    re.IGNORECASE | re.VERBOSE,
)
_IMAGE = r"""(?:image | picture | photo | photograph | illustration | painting | drawing | artwork | screenshot |
    sketch | rendering | snapshot)"""
_SHOWS = r"""(?:shows? | showing | depicts? | depicting | features? | featuring | displays? | displaying | captures? |
    capturing | portrays? | portraying | presents? | presenting | illustrates? | contains? | containing)\b"""
_META = re.compile(
    rf"""\W* (?: (?:sure | certainly | absolutely | of\ course | here\ is | here's | okay)\b
        [^.!:\n]{{0,60}} [.!:,]? \s* )?
    (?: in\ (?:this|the)\ (?:\w+\ ){{0,2}}? (?:{_IMAGE} | scene)\b
      | (?:this|the)\ (?:\w+\ ){{0,3}}? {_IMAGE} \ (?:{_SHOWS}
          | (?:is | appears\ to\ be | seems\ to\ be)\ (?:{_SHOWS} | (?:of | a | an | the)\b))
      | this\ (?:\w+\ ){{0,3}}? {_IMAGE} \ (?:of | a | an | the)\b
      | this\ is\ (?:a | an | the)\ (?:\w+\ ){{0,3}}? {_IMAGE} \b
      | you\ are\ looking\ at\b | (?:we | you | i)\ can\ see\b | i\ see\ (?:a | an | the)\b
      | (?:here\ is | here's)\ (?:a | the | your)\ (?:\w+\ ){{0,3}}? (?:caption | description | prompt | list)\b
      | (?:(?:\w+\ ){{0,2}}? (?:caption | description | alt\ ?text | prompt | summary | keywords | tags)
          | answer | response | output | assistant) [\s*_#]* :
      | (?:sure | certainly | absolutely | of\ course) [!,] )""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"""(?: ^ | [.!?\n]\s* | \bunfortunately,?\s+ ) [\s*_]*
    (?: (?:i['’]?m | i\ am)\ (?:\w+\ )?sorry | i\ apologi[sz]e | (?:my\ )?apologies\b
      | (?:\w+\ )?sorry\b [^.\n]{0,80}? \b
        (?: can['’]?t | can\ ?not | could(?:n['’]?t|\ not) | unable | not\ able | won['’]?t |
            don['’]?t | not\ (?:allowed|permitted|appropriate|comfortable) | no\ image )
      | as\ an?\ (?:ai | (?:\w+\ )?language\ model)\b | (?:i['’]?m | i\ am)\ (?:just\ )?an\ ai
      | (?: i['’]?m | i\ am | we['’]?re | we\ are )[ ]
        (?: unable | not\ (?:able | comfortable | permitted | allowed) )\b
      | unable\ to\ (?: assist | help | provide | describe | caption | comply | process | view | see | generate )\b
      | i\ (?: must | have\ to )\ decline\b
      | i\ (?:do\ not | don['’]?t)\ see\ an(?:y)?\ (?:image | picture | photo)\b
      | (?: there\ (?:is | was)\ )? no\ (?:image | picture | photo)\ (?:was\ | is\ | has\ been\ )?
        (?: attached | provided | given | included | uploaded | available | shared )\b
      | (?: i | we )\ (?: cannot | can['’]?t | can\ not | won['’]?t | couldn['’]?t | don['’]?t |
            (?:could | do)\ not )[ ]
        (?: be\ able\ to\ | feel\ )?
        (?: assist | help | provide | describe | caption | comply | fulfill? | create | generate | see | view |
            identify | process | engage | comfortable | do\ that )\b )""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL_WITHIN = 200  # characters of the beginning: later such words may be a quotation
_SCRIPTS: tuple[tuple[str, Script], ...] = (
    ("LATIN", "Latin"), ("CYRILLIC", "Cyrillic"), ("GREEK", "Greek"), ("ARABIC", "Arabic"), ("HEBREW", "Hebrew"),
    ("DEVANAGARI", "Devanagari"), ("THAI", "Thai"), ("CJK", "Han"), ("HIRAGANA", "Kana"), ("KATAKANA", "Kana"),
    ("HANGUL", "Hangul"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sight:
    """A caption as a checker sees it: what was asked, and how the answer ended. `language` None: it may be any."""

    text: str
    prompt: str
    is_cut_off: bool = False
    lists_tags: bool = False
    language: Language | None = None


def findings(sight: Sight, checks: Sequence[Finding] = FINDINGS) -> tuple[Finding, ...]:
    """What is wrong with it, the worst first; of an empty caption nothing else is said."""
    if is_empty(sight.text):
        return ("empty",) if "empty" in checks else ()
    is_so = {
        "refusal": lambda: is_refusal(sight.text),
        "loop": lambda: is_loop(sight.text, sight.lists_tags),
        "prompt_echo": lambda: is_echo(sight.text, sight.prompt),
        "wrong_language": lambda: is_in_another_language(sight),
        "truncated": lambda: sight.is_cut_off,
        "meta_phrase": lambda: begins_with_meta_phrase(sight.text),
    }
    return tuple(name for name in FINDINGS if name in checks and name in is_so and is_so[name]())


def is_empty(text: str) -> bool:
    """Without a single letter or digit, or a word for nothing, such as N/A."""
    return _WORD.search(text.replace("_", " ")) is None or _NOTHING.fullmatch(text[:_LONGEST_NOTHING]) is not None


def is_refusal(text: str) -> bool:
    return _REFUSAL.search(text[:_REFUSAL_WITHIN]) is not None


def begins_with_meta_phrase(text: str) -> bool:
    """«This image shows …»: words about the image instead of what is in it."""
    return _META.match(text[:400].lstrip()) is not None


def is_echo(text: str, prompt: str) -> bool:
    """The caption begins with the prompt's words, or has the whole prompt in it."""
    prompt_words, words = _words(prompt), _words(text)
    if len(prompt_words) < _LEAST_ECHO:
        return False
    opening = prompt_words[:_LONGEST_OPENING]
    return words[: len(opening)] == opening or f" {' '.join(prompt_words)} " in f" {' '.join(words)} "


def is_loop(text: str, lists_tags: bool = False) -> bool:
    """It ends by saying one thing over and over, or says most of it more than once."""
    words = _words(text)
    if _ends_in_loop(words, least_rounds=4, least_length=12) or _ends_in_loop(text.rstrip(), 6, 40):
        return True
    if lists_tags:
        tags = [tag.strip().lower() for tag in re.split(r"[,;\n]", text) if tag.strip()]
        return (len(tags) >= 10 and len(set(tags)) < 0.6 * len(tags)) or (
            len(tags) >= _LEAST_TAGS and len(set(tags)) < 0.5 * len(tags)
        )
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(fours) >= 40 and len(set(fours)) < 0.5 * len(fours)


def _ends_in_loop(units: Sequence[str], least_rounds: int, least_length: int) -> bool:
    """Whether a unit of up to `_LONGEST_UNIT` is repeated to the end. A cut-off last round counts as well."""
    end = units[::-1][: _LONGEST_UNIT * (least_rounds + 1)]
    for period in range(1, min(_LONGEST_UNIT, len(end) // 2) + 1):
        num_equal = next((n for n in range(len(end) - period) if end[n] != end[n + period]), len(end) - period)
        if num_equal >= period * (least_rounds - 1) and num_equal + period >= least_length:
            return True
    return False


def is_in_another_language(sight: Sight) -> bool:
    """Plainly so: another script, or another language's small words and hardly any of the one that was asked for."""
    language = sight.language
    if language is None or sight.lists_tags:
        return False
    text = sight.text[:_MOST_SEEN]
    scripts = Counter(script for script in map(_script, text) if script is not None)
    if not scripts:
        return False
    common, num_letters = scripts.most_common(1)[0]
    if language.script == "Kana":  # Japanese is written in Han as well
        return scripts["Kana"] + scripts["Han"] < 0.5 * scripts.total()
    if common != language.script:
        return num_letters > 0.5 * scripts.total()
    if not language.words:
        return False
    counts = Counter(_words(text))
    hits = {
        other.code: sum(counts[word] for word in other.words)
        for other in LANGUAGES
        if other.script == language.script
    }
    return max(hits.values()) >= 4 and max(hits.values()) >= 3 * max(hits[language.code], 1)


def _script(character: str) -> Script | None:
    if character.isascii():
        return "Latin" if character.isalpha() else None
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "")
    return next((script for start, script in _SCRIPTS if name.startswith(start)), None)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
