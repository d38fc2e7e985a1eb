"""How a command ends when it can't go on: a sentence that names the fix, and an exit code.

0 all is well · 1 something failed · 2 the command or its settings can't work · 3 no service answers ·
130 stopped by Ctrl-C.
"""

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


class CliError(Exception):
    """Ends the command: `message` goes to stderr, `exit_code` to the shell."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Unreachable(CliError):
    """No connection could be made at all: nothing was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNREACHABLE)


class Dropped(CliError):
    """A connection broke, or stayed silent too long, before the whole answer came."""


class ApiError(CliError):
    """The service answered, with a failure. `param` and `code` are the API's; `code` may be empty."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, USAGE if 400 <= status < 500 and status != 429 else FAILED)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
