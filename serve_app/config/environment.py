"""What a model's processes find in their environment: plain values from the config, secrets from where they are kept.

Ray writes a process's `env` into its logs at each deploy, and a config's args where a deploy fails. So a secret never
stands in the config: `env_from` names a file of the node, or a variable of the node's own environment, and the
process reads it there. Imports no Ray and no engine.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from serve_app.errors import ConfigError
from serve_app.strict import Strict, looks_like_secret

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
MOST_BYTES = 65_536  # the system allows 128 kB for one variable

# A name's last word says what it holds: HF_TOKEN_PATH is a path, HF_TOKEN a secret.
_SECRET_WORDS = frozenset({
    "token", "tokens", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "pass", "key", "keys",
    "apikey", "apikeys", "credential", "credentials", "pat", "jwt", "dsn",
})  # fmt: skip
_SECRET_ENDS = ("password", "passwd", "secret", "apikey", "token")  # PGPASSWORD, hfToken
_SECRET_PAIRS = frozenset({("connection", "string"), ("mysql", "pwd")})
# A tokenizer's tokens, by the word before: STOP_TOKENS, PAD_TOKEN.
_VOCABULARY = frozenset({
    "stop", "special", "added", "extra", "bad", "pad", "bos", "eos", "unk", "sep", "cls", "mask", "max", "min", "num",
})  # fmt: skip
# A key that opens something, by the word before; any other may be a word as well: SORT_KEY.
_OPENING = frozenset({
    "api", "secret", "access", "private", "auth", "account", "storage", "master", "license", "encryption", "signing",
    "service", "admin", "ssh", "ssl", "tls",
})  # fmt: skip
_WORD = re.compile(r"(?=.{1,16}$)[a-z]+[0-9]{0,3}([_.-][a-z]+[0-9]{0,3})*")
_PLAIN_VALUE = re.compile(
    r"|[0-9.,]{1,12}|true|false|yes|no|on|off"
    r"|empty|none|null|dummy|unused|placeholder|no[_-]?key|not[_-]?(needed|used|set|required)"
    r"|<\S{1,40}>|\[[a-z]{1,10}\]"  # <pad>, </s>, <your-token>, [CLS]
    r"|(/|~/|\./)\S*\.[a-z0-9]{1,5}|(~|\.)/\S+"
    r"|/(etc|run|var|home|root|mnt|opt|usr|srv|tmp|data|secrets|app|models)/\S+"
    r"|(?-i:(/[a-z0-9_.-]+){2,})",  # base64 may begin with a slash, and has capitals
    re.IGNORECASE,
)


class EnvironmentSource(Strict):
    """Where a variable's value is kept: in a file, whose text it is without the white space around it, or in a
    variable of the node's own environment."""

    file: str | None = Field(None, min_length=1)
    variable: str | None = Field(None, pattern=VARIABLE)

    @model_validator(mode="before")
    @classmethod
    def _is_a_place(cls, source: Any) -> Any:
        if not isinstance(source, dict | EnvironmentSource):
            raise PydanticCustomError(
                "no_place", "write {file: PATH} or {variable: NAME}: no secret itself belongs in a config"
            )
        return source

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.file is None) == (self.variable is None):
            raise ValueError("name a file or a variable, one of the two")
        if looks_like_secret(self.variable or ""):
            raise ValueError("this is no variable's name but a secret itself: name where it is kept")
        return self


def read(sources: Mapping[str, EnvironmentSource]) -> dict[str, str]:
    """The values, as they are on this node. Raises `ConfigError`, which repeats none of them."""
    values = {}
    for name, source in sources.items():
        try:
            values[name] = _of_file(source.file) if source.file else _of_variable(source.variable or "")
        except ConfigError as exc:
            raise ConfigError(f"env_from: {name}: {exc}") from None
    return values


def take(sources: Mapping[str, EnvironmentSource]) -> None:
    """Put the values into this process's environment, for its libraries and for the processes that it starts."""
    os.environ.update(read(sources))


@contextmanager
def taken(sources: Mapping[str, EnvironmentSource]) -> Iterator[None]:
    """As `take`, while the block runs."""
    values = read(sources)
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _of_file(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():  # nor a pipe, which would be waited for
        raise ConfigError(f"there is no file {file} on this node: put it on every node that may run the model")
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        text = content.decode().strip()
    except OSError as exc:
        raise ConfigError(f"{file} can't be read ({exc.strerror}): let the user that Ray runs as read it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} isn't text in UTF-8: name a file that holds the value alone") from None
    if not text or "\0" in text or len(content) > MOST_BYTES:
        raise ConfigError(f"{file} must hold the value alone, in at most {MOST_BYTES:,} bytes")
    return text


def _of_variable(name: str) -> str:
    if value := os.environ.get(name):
        return value
    raise ConfigError(
        f"this node's environment has no '{name}': set it where Ray starts on every node that may run the model"
    )


def secret_in(values: Mapping[str, Any]) -> str | None:
    """Why one of these variables must not stand in a config, in a sentence without its value; None where all may."""
    for name, value in values.items():
        if looks_like_secret(str(value)) or _holds_secret(name, str(value).strip()):
            return (
                f"{name} looks like a secret, and Ray writes these values into its logs: leave it out here, and name "
                f"where it is kept in the model's env_from: {{{name}: {{file: /run/secrets/{name.lower()}}}}}, or "
                f"{{{name}: {{variable: NAME}}}} for one of the node's environment"
            )
    return None


def _holds_secret(name: str, value: str) -> bool:
    """Whether a variable of this name holds a secret, unless its value plainly is none."""
    before, last = ["", "", *(word.lower() for word in re.split(r"[^A-Za-z0-9]+", name) if word)][-2:]
    names_secret = last in _SECRET_WORDS or last.endswith(_SECRET_ENDS) or (before, last) in _SECRET_PAIRS
    if not names_secret or _PLAIN_VALUE.fullmatch(value):
        return False
    if last in ("token", "tokens"):
        return before not in _VOCABULARY
    return not (last in ("key", "keys") and before not in {"", *_OPENING} and _WORD.fullmatch(value))
