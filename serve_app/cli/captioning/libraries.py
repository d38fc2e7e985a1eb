"""The libraries of the extra `datasets`, imported where a run uses them."""

import importlib
from typing import Any

from serve_app.cli.errors import USAGE, CliError


def library(name: str) -> Any:
    """The module. Raises `CliError` where the extra isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise CliError(f"{name.partition('.')[0]} is missing: pip install 'serve-app[datasets]'", USAGE) from exc
