"""`serve-app gallery`: the images of a run with their captions on one page."""

from typing import Annotated

import typer


def gallery(
    captions: Annotated[str, typer.Argument(metavar="FILE.jsonl|.csv|.parquet|FOLDER", show_default=False)],
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
    from serve_app.cli.captioning.gallery import write_page

    print(write_page(captions, output, limit))
