"""Frozen values that refuse unknown keys by name, and their mistakes in one sentence: configs and bodies are such."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

# What well-known services' secrets begin with, keys of this service too, and what carries one: a private key, a URL
# with a password, a header's value.
_SECRET = re.compile(
    r"(?<![\w./-])((hf_|api_org_|npm_|gsk_|r8_|whsec_|[rs]k_live_|gh[opsur]_)[A-Za-z0-9]{14,}|(AKIA|ASIA)[A-Z0-9]{16}"
    r"|(sk-|sa-|github_pat_|glpat-|xox[abeoprs]-|pypi-AgE|nvapi-|AIza|ya29\.|dop_v1_|dckr_pat_|pplx-|xai-)"
    r"(?=\S*[0-9])[A-Za-z0-9_.=-]{16,})"
    r"|eyJ[A-Za-z0-9_=-]{8,}\.eyJ[A-Za-z0-9_=-]{8,}\."
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:[^/\s@]+@"
    r"|(AccountKey|SharedAccessSignature|[?&]sig|[Pp]assword|[Pp]wd)=[^\s;&]{6,}"
    r"|\b(Bearer|Basic) +[A-Za-z0-9+/_.=-]{16,}"
)
_RANDOM = re.compile(r"[A-Za-z0-9+_=-]{32,}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # names things, as in MIG-GPU-…
_MIN_CHANGES = 8  # between letters and digits: names have fewer, random text of 32 characters has about nine
_MIN_LETTERS = 4  # of each case: `GPU-` before hexadecimal digits makes a name
_NEVER_SHOWN = frozenset({"env", "env_from", "environment"})  # fields where somebody may have put a secret


class Strict(BaseModel):
    """Frozen values in which an unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for key in values.keys() - valid:
                hint = nearest_hint(str(key), valid)
                raise PydanticCustomError(
                    "unknown_field", "unknown field '{field}'{hint}", {"field": str(key), "hint": hint}
                )
        return values


def nearest_hint(name: str, valid: Any) -> str:
    """«: did you mean 'x'?» with the nearest of `valid`, or all of them where none is near."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return ": did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f": expected one of {', '.join(sorted(valid))}" if valid else ""


def first_sentence(error: ValidationError) -> str:
    """The first mistake, with the path of the value it is about."""
    first = error.errors(include_url=False, include_input=True)[0]
    path = ".".join(str(step) for step in first["loc"])
    sentence = first["msg"].removeprefix("Value error, ")
    is_shown = not isinstance(first["input"], dict) and not _NEVER_SHOWN.intersection(first["loc"])
    shown = f" (it is {first['input']!r})" if is_shown and not looks_like_secret(str(first["input"])) else ""
    return f"{path}: {sentence}{shown}" if path else sentence


def looks_like_secret(text: str) -> bool:
    """Whether there is a token, key or password in it, as far as its look tells: hashes and paths are none."""
    if _SECRET.search(text):
        return True
    text = _UUID.sub("", text)
    num_changes = len(re.findall(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", text))
    num_letters = min(sum(map(str.isupper, text)), sum(map(str.islower, text)))
    return num_letters >= _MIN_LETTERS and num_changes >= _MIN_CHANGES and _RANDOM.fullmatch(text) is not None
