"""Options that every command shares."""

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="SERVE_APP_URL",
        help="Where the service answers. An API key, if it wants one, comes from SERVE_APP_API_KEY.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
