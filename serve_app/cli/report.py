"""`serve-app report`: what an output amounts to."""

import json
from typing import Annotated

import typer


def report(
    captions: Annotated[str, typer.Argument(metavar="FILE.jsonl|.csv|.parquet|FOLDER", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Tell what an output holds: captions, failures by reason, findings of the guard, lengths.

    \b
    serve-app report captions.jsonl
    serve-app report holiday/             (after --output txt)
    """
    from serve_app.cli.captioning.captioned import latest
    from serve_app.cli.captioning.report import Report

    counts = Report()
    for image in latest(captions):
        counts.count(image.row)
    print(json.dumps(counts.as_json()) if as_json else "\n".join(counts.lines()))
