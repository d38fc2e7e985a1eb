"""A route of the HTTP app as one row: how it is reached, what it reads and answers, and who runs it.

The app, its OpenAPI page, the shape of errors and the counting of requests all read this row.
"""

from dataclasses import dataclass
from typing import Any, Literal

from serve_app.exchange.body import Body
from serve_app.exchange.dialect import Dialect
from serve_app.exchange.exchange import Handler


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value beside the body, and what it means."""

    name: str
    place: Literal["query", "header"]
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """`body`, `answer` and `event` are types: of the JSON that is read, of the whole answer and of a stream's events.

    An `answer` of type `str` is an HTML page; None means that the route only streams, and no `event` that it never
    does. `form` are the fields of a multipart form with images, `unready_answer` is the JSON of a 503 that is no
    error. An open route needs no key. The first paragraph of the handler's docstring is the summary.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    dialect: Dialect
    answer: Any = None
    body: Any = None
    event: Any = None
    form: type[Body] | None = None
    unready_answer: Any = None
    parameters: tuple[Parameter, ...] = ()
    is_open: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether it is work for a model: counted in the metrics and against the key's limits, and logged."""
        return self.body is not None

    @property
    def error(self) -> Any:
        """The type of its errors."""
        return self.dialect.error_type

    @property
    def shown_path(self) -> str:
        return self.path.replace(":path", "")
