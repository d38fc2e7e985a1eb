"""Why a request to the service has no answer. Imports nothing, so that a command line can name these at once."""


class ServiceError(Exception):
    """A request failed. `message` is a sentence for a user of the command line.

    `api_message`, `code` and `param` are the service's own words, where it sent an error. `status` is None where no
    response came.
    """

    def __init__(
        self,
        message: str,
        *,
        api_message: str | None = None,
        status: int | None = None,
        code: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.api_message = api_message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class Unreachable(ServiceError):
    """No connection could be made, so nothing was sent."""


class BrokenOff(ServiceError):
    """The connection broke, stayed silent too long, or ended before the whole answer came."""
