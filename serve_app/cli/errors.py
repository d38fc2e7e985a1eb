"""How a command ends when it can't go on: a sentence that names the fix, and an exit code.

0 all is well · 1 something failed · 2 the command or its settings can't work · 3 no service answers ·
130 stopped by Ctrl-C.
"""

from serve_app.client.errors import ServiceError, Unreachable

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


class CliError(Exception):
    """Ends the command: `message` goes to stderr, `exit_code` to the shell."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def exit_code_of(error: ServiceError) -> int:
    """The exit code of a command that ends because a request failed."""
    if isinstance(error, Unreachable):
        return UNREACHABLE
    return USAGE if 400 <= (error.status or 0) < 500 and error.status != 429 else FAILED
