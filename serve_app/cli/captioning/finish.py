"""What becomes of a caption before it is written: trigger words, tags as trainers want them, replaced words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from serve_app.cli.errors import USAGE, CliError

_TAG_ENDS: Final = re.compile(r"[,;\n]")
_SPACES: Final = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TagRules:
    """How a list of tags is written. `separator` stands between them; `dropped` are left out, in any case."""

    separator: str = ", "
    underscores: bool | None = None  # in place of spaces; False: spaces in place of them; None: as they came
    escapes_parentheses: bool = False
    dropped: tuple[str, ...] = ()
    most: int | None = None

    def apply(self, text: str) -> str:
        tags = dict.fromkeys(self._spelled(tag.strip()) for tag in _TAG_ENDS.split(text) if tag.strip())
        dropped = {self._spelled(tag).casefold() for tag in self.dropped}
        kept = [tag for tag in tags if tag.casefold() not in dropped]
        return self.separator.join(kept[: self.most])

    def _spelled(self, tag: str) -> str:
        if self.underscores is not None:
            tag = tag.replace(" ", "_") if self.underscores else tag.replace("_", " ")
        return re.sub(r"(?<!\\)([()])", r"\\\1", tag) if self.escapes_parentheses else tag


@dataclass(frozen=True, slots=True)
class Finish:
    """The steps from the model's caption to the written one, in this order.

    `tags` None: the caption is no list. `replaced`: pairs of a text and what stands for it. `prepend` and `append`
    are written as they are, so that `"sks dog, "` brings its own comma.
    """

    tags: TagRules | None = None
    replaced: tuple[tuple[str, str], ...] = ()
    is_one_line: bool = False
    prepend: str = ""
    append: str = ""

    @classmethod
    def of(cls, replaced: Sequence[str], **others: Any) -> "Finish":
        """`replaced` are texts such as `photograph=photo`. Raises `CliError` for one without an equals sign."""
        pairs = [text.partition("=") for text in replaced]
        for text, (old, sign, _) in zip(replaced, pairs, strict=True):
            if not (old and sign):
                raise CliError(f"--replace '{text}': write OLD=NEW, such as photograph=photo", USAGE)
        return cls(replaced=tuple((old, new) for old, _, new in pairs), **others)

    def apply(self, caption: str, fill: Callable[[str], str] = lambda words: words) -> str:
        """The written caption. `fill` puts an image's own words in what is prepended and appended."""
        text = self.tags.apply(caption) if self.tags else caption
        for old, new in self.replaced:
            text = text.replace(old, new)
        if self.is_one_line:
            text = _SPACES.sub(" ", text).strip()
        return f"{fill(self.prepend)}{text}{fill(self.append)}"

    @property
    def detail(self) -> dict[str, Any] | None:
        """What differs from leaving the caption as it is, for a row's settings; None if nothing does."""
        changes = {name: value for name, value in asdict(self).items() if value != getattr(Finish(), name)}
        return changes or None
