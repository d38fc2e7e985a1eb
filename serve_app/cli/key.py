"""`serve-app key`: a new API key on stdout, once, and its entry on stderr or in the service's file of keys."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.cli.errors import USAGE, CliError
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.access.key_file import KeyEntry

NOTE = "# For the list below `keys:`. The key itself, on standard output, is shown this once.\n"


def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)],
    models: Annotated[
        str | None, typer.Option(metavar="NAME,NAME…", help="It may use these models alone. Left out: all.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Left out: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Left out: no limit.")] = None,
    images_per_minute: Annotated[int | None, typer.Option(min=1, help="Left out: no limit.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Higher goes first. Left out: in the middle.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may read the service's numbers too.")] = False,
    file: Annotated[
        Path | None, typer.Option(help="Add the entry to this file of keys; a new one is yours alone to read.")
    ] = None,
) -> None:
    """Make an API key: the key on stdout, the entry for the service's file of keys on stderr or in FILE.

    \b
    serve-app key alice --file keys.yaml
    serve-app key bob --models demo --requests-per-minute 60 --file keys.yaml
    serve-app key carol > carol.key

    The service knows a key by its hash alone, so nobody can show it again.
    It looks at its file every few seconds: nothing needs to be restarted.
    """
    from serve_app.access.keys import new_key, sha256_of  # late: `--help` stays instant

    secret = new_key()
    fields = {
        "name": name, "sha256": sha256_of(secret), "models": _names(models), "admin": admin, "priority": priority,
        "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute,
        "images_per_minute": images_per_minute,
    }  # fmt: skip
    entry = _checked({field: value for field, value in fields.items() if value is not None})
    if file is not None:
        _add(file, entry)
        typer.echo(f"'{name}' was added to {file}. Its key is shown this once:", err=True)
    typer.echo(secret)
    if file is None:
        from serve_app.access.key_file import entry_text

        typer.echo(NOTE + entry_text(entry), err=True, nl=False)


def _names(models: str | None) -> list[str] | None:
    return None if models is None else [model for word in models.split(",") if (model := word.strip())]


def _checked(fields: dict[str, object]) -> "KeyEntry":
    from pydantic import ValidationError

    from serve_app.access.key_file import KeyEntry
    from serve_app.strict import first_sentence

    try:
        return KeyEntry.model_validate(fields)
    except ValidationError as exc:
        field, _, sentence = first_sentence(exc).partition(": ")
        option = "NAME" if field == "name" else f"--{field.partition('.')[0].replace('_', '-')}"
        raise CliError(f"{option}: {sentence}", USAGE) from exc


def _add(path: Path, entry: "KeyEntry") -> None:
    """Put the entry in the file, whole or not at all. Raises `CliError`."""
    from serve_app.access.key_file import with_entry

    target = Path(os.path.realpath(path))  # a link stays one
    try:
        with _locked(target.parent):
            before = target.stat() if target.exists() else None
            text = with_entry(target.read_bytes() if before else b"", entry)
            _replace(target, text, before)
    except ConfigError as exc:
        raise CliError(f"{path}: {exc}", USAGE) from exc
    except OSError as exc:
        raise CliError(f"{path} can't be written ({exc.strerror}): name a file in a folder of yours", USAGE) from exc


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One `serve-app key` at a time, or the later of two would drop the entry of the earlier."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str, before: os.stat_result | None) -> None:
    """Write a draft beside the file and rename it: whoever reads meanwhile sees the old file or the new one.

    The draft is readable by its owner alone; over a file it takes that one's rights and owner, so that the service
    can still read it.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            if before is not None:
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
