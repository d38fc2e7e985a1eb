"""`serve-app gallery`: the images of a run with their captions on one page."""

import os
from typing import Annotated

import typer

from serve_app.cli.errors import FAILED, CliError


def gallery(
    captions: Annotated[str, typer.Argument(metavar="FILE.jsonl|FILE.csv|FOLDER", show_default=False)],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The page. Left out: the captions' name with .html.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first so many images: each is some 10 kB.")] = 5000,
) -> None:
    """Write one HTML page with an output's images, captions, failures and findings.

    \b
    serve-app gallery captions.jsonl
    serve-app gallery holiday/            (after --output txt)

    The page opens from disk and loads nothing. It finds words, filters by what the guard
    found and by failures, shows how long captions are, and copies a caption at a click.
    """
    from serve_app.cli.captioning.gallery import page_of

    html, num_shown, num_there = page_of(captions, limit)
    name = output or (os.path.join(captions, "gallery.html") if os.path.isdir(captions) else f"{captions}.html")
    try:
        with open(name, "w", encoding="utf-8") as file:
            file.write(html)
    except OSError as exc:
        raise CliError(f"{name} can't be written ({exc.strerror}): choose another --output", FAILED) from exc
    rest = f" of {num_there:,}: a larger --limit shows the rest" if num_shown < num_there else ""
    print(f"{name}: {num_shown:,} images{rest}")
