"""The `serve-app` command: one file per subcommand, and one place where a failure becomes a sentence.

Nothing here imports Ray, torch or httpx before a subcommand needs it, so that `--help` is instant.
"""

import errno
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from serve_app.cli.caption import caption
from serve_app.cli.chat import chat
from serve_app.cli.errors import FAILED, INTERRUPTED, USAGE, CliError, exit_code_of
from serve_app.cli.gallery import gallery
from serve_app.cli.key import key
from serve_app.cli.manifest import manifest
from serve_app.cli.models import models
from serve_app.cli.plan import plan
from serve_app.cli.report import report
from serve_app.cli.status import status
from serve_app.cli.terminal import open_closed_streams, printable, stdout_failure
from serve_app.cli.up import up
from serve_app.client.errors import ServiceError
from serve_app.errors import ConfigError


class _Commands(TyperGroup):
    """Runs a subcommand and turns an error into its sentence on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        open_closed_streams()
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # here, where a failure can still become a sentence
        except CliError as exc:
            error, exit_code = exc.message, exc.exit_code
        except ServiceError as exc:
            error, exit_code = exc.message, exit_code_of(exc)
        except ConfigError as exc:
            error, exit_code = str(exc), USAGE
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except OSError as exc:
            if exc.filename is not None or exc.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
                raise
            error, exit_code = stdout_failure(exc), FAILED
        print(f"serve-app: {printable(error)}", file=sys.stderr)
        sys.exit(exit_code)


app = typer.Typer(
    name="serve-app",
    cls=_Commands,
    help="Many chat and captioning models behind one address.\n\nExample: serve-app caption holiday.jpg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (up, plan, manifest, key, caption, gallery, report, chat, models, status):
    app.command()(command)
