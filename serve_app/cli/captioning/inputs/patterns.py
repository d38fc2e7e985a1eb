"""The files that an argument names: a name that is there stands for itself, also as a part of a pattern."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence


def matches(argument: str) -> Iterator[str]:
    """What an argument names: itself, if that is there, or else what its pattern finds, sorted."""
    if os.path.lexists(argument):
        yield argument
    elif glob.has_magic(argument):
        yield from _expanded("", argument.split(os.sep))


def _expanded(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The paths below `folder` that the parts of a pattern lead to. A name that is there stands for itself."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    literal = os.path.join(folder, part) if folder else part or os.sep
    if os.path.lexists(literal):
        yield from _expanded(literal, rest)
        return
    pattern = os.path.join(glob.escape(folder), part)
    for path in _globbed(pattern, only_folders=bool(rest)) if glob.has_magic(part) else ():
        yield from _expanded(path, rest)


def _globbed(pattern: str, only_folders: bool) -> Iterable[str]:
    paths = sorted(path.rstrip(os.sep) for path in glob.iglob(pattern, recursive=True))
    if pattern == "**":  # which doesn't name the folder that it begins in
        paths.insert(0, "")
    return (path for path in paths if not only_folders or not path or os.path.isdir(path))
