"""`serve-app caption`: images in, captions out, however many there are."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.errors import USAGE, CliError
from serve_app.cli.options import DEFAULT_URL, ApiKey, Url


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|PATTERN...", show_default=False)],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Which model. Left out: the service's first one.")] = None,
    style: Annotated[
        str | None, typer.Option(help="short, detailed, tags or one of the model's own. Left out: short.")
    ] = None,
    length: Annotated[str | None, typer.Option(help="Words, or: very short, short, medium-length, long …")] = None,
    option: Annotated[list[str] | None, typer.Option(help="One of the model's extra options; repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="What a person in the image is called (JoyCaption).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Your own words instead of a style.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest caption, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same numbers.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="FILE.jsonl, FILE.csv, or txt: a.txt beside each a.jpg.")
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Enter folders inside folders.")] = True,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Images on their way at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the failed ones again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop earlier captions; begin anew.")] = False,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a service that has gone away.")] = 60.0,
) -> None:
    """Caption an image, a folder, or files that match a pattern.

    \b
    serve-app caption cat.jpg
    serve-app caption holiday/ --output captions.jsonl
    serve-app caption holiday/ --style tags --output txt
    serve-app caption holiday/ --style descriptive --length 80 --option include_lighting

    With --output the run can be stopped at any moment: the same command
    continues where it stopped. Images that failed wait for --retry-failed.
    A row counts for the model, style, length, options, name and prompt that were
    asked when it was made; asking otherwise adds rows of its own. With txt an image whose text
    file is there is done, and failures stand in serve-app-failures.jsonl.

    Exit codes: 0 all captioned, 1 some failed, 2 the command can't work,
    3 no service, 130 stopped by Ctrl-C.
    """
    from serve_app.cli.captioning.request import CaptionRequest
    from serve_app.cli.captioning.rows import CaptionSettings
    from serve_app.cli.captioning.session import Session

    kind = _output_kind(output)
    if overwrite and retry_failed:
        raise CliError("--overwrite begins anew, so there is nothing to retry: leave out one of the two", USAGE)
    request = CaptionRequest(
        CaptionSettings(model, style, prompt, length, tuple(option or ()), name), max_tokens, seed
    )
    session = Session(
        url=url, api_key=api_key, images=images, is_recursive=recursive, request=request, kind=kind,
        output=output, is_overwriting=overwrite, is_retrying=retry_failed, concurrency=concurrency, limit=limit,
        patience_s=patience,
    )  # fmt: skip
    if exit_code := session.run():
        raise typer.Exit(exit_code)


def _output_kind(output: str | None) -> str:
    """`printed`, `txt` or `rows`, or a sentence on what --output takes."""
    if output is None:
        return "printed"
    if output == "txt":
        return "txt"
    if Path(output).suffix.lower() not in (".jsonl", ".csv"):
        raise CliError(f"--output {output}: name a file that ends in .jsonl or .csv, or write txt", USAGE)
    if Path(output).is_dir():
        raise CliError(f"--output {output} is a folder: name a file in it, like {output}/captions.jsonl", USAGE)
    return "rows"
