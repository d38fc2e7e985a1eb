"""Options that every command shares."""

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="SERVE_APP_URL",
        help="Where the service answers.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SERVE_APP_API_KEY",
        metavar="KEY",
        show_default=False,
        help="For a service with keys. Others on this machine can see it here, so rather set the variable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
