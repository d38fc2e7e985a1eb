"""Every way a request can fail, as one class each: HTTP status, stable code, a sentence with the fix.

ServeAppError                    status  code
├── RequestError                         the client can change the request
│   ├── InvalidRequest            400    invalid_request
│   ├── InvalidKey                401    invalid_api_key
│   ├── Forbidden                 403    forbidden
│   ├── UnknownModel              404    model_not_found
│   ├── UnsupportedTask           400    unsupported_task
│   ├── ContextTooLong            400    context_length_exceeded
│   ├── BodyTooLarge              413    body_too_large
│   ├── UnsupportedMediaType      415    unsupported_media_type
│   ├── InvalidImage              400    invalid_image
│   ├── ImageTooLarge             413    image_too_large
│   ├── ImageUrlRefused           400    image_url_refused
│   ├── ImageFetchFailed          400    image_fetch_failed
│   ├── TooManyImages             400    too_many_images
│   ├── ClientTooSlow             408    client_too_slow
│   ├── BodyTooSlow               408    body_too_slow
│   ├── RateLimited               429    rate_limit_exceeded
│   ├── HeadersTooLarge           431    headers_too_large
│   ├── RequestCancelled          499    request_cancelled
│   ├── RequestNotFound           404    request_not_found
│   ├── RouteNotFound             404    route_not_found
│   └── MethodNotAllowed          405    method_not_allowed
└── ServiceError                         the same request may work later
    ├── ModelNotReady             503    model_not_ready
    ├── Overloaded                503    overloaded
    ├── ShuttingDown              503    shutting_down
    ├── ReplicaDied               503    replica_died
    ├── DeadlineExceeded          504    deadline_exceeded
    ├── EngineFailed              500    engine_failed
    └── InternalError             500    internal_error

The code is also the `outcome` label of `serve_app_requests_total`. Errors cross process boundaries, so
every field is positional and pickles; answers use `message`, because Ray turns `str(exc)` into a traceback.
"""

from typing import Any, ClassVar, Self


class Unanswered(Exception):
    """A part that the service does without for a while, such as the sidecar, gave no answer. No client sees this."""


class ServeAppError(Exception):
    """A failure with an HTTP status, a stable code and a sentence that says what to change.

    `param` names the request's field at fault, in the client's spelling. `retry_after_s` is the seconds until a retry
    has a chance, for the `Retry-After` header. `model` is the existing model that the request asked for, for the
    metrics' label.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    type: ClassVar[str]

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.model: str | None = None

    def about(self, model: str) -> Self:
        """This error, of a request for this existing model."""
        self.model = model
        return self


class RequestError(ServeAppError):
    """The request can't be served as it is; sending it again changes nothing."""

    type = "invalid_request_error"

    def in_field(self, param: str) -> Self:
        """This error, with the name of the request's field that it is about before its sentence."""
        return type(self)(f"{param}: {self.message}", param)


class InvalidRequest(RequestError):
    status, code = 400, "invalid_request"


class InvalidKey(RequestError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class Forbidden(RequestError):
    status, code, type = 403, "forbidden", "permission_error"


class UnknownModel(RequestError):
    status, code = 404, "model_not_found"


class UnsupportedTask(RequestError):
    status, code = 400, "unsupported_task"


class ContextTooLong(RequestError):
    status, code = 400, "context_length_exceeded"

    @classmethod
    def of(cls, context_length: int, sentence: str, param: str) -> Self:
        """In OpenAI's words, by which clients recognize this error; `sentence` goes on after "However, "."""
        return cls(f"This model's maximum context length is {context_length} tokens. However, {sentence}", param)


class BodyTooLarge(RequestError):
    status, code = 413, "body_too_large"


class UnsupportedMediaType(RequestError):
    status, code = 415, "unsupported_media_type"


class InvalidImage(RequestError):
    status, code = 400, "invalid_image"


class ImageTooLarge(RequestError):
    status, code = 413, "image_too_large"


class ImageUrlRefused(RequestError):
    status, code = 400, "image_url_refused"


class ImageFetchFailed(RequestError):
    status, code = 400, "image_fetch_failed"


class TooManyImages(RequestError):
    status, code = 400, "too_many_images"


class ClientTooSlow(RequestError):
    status, code = 408, "client_too_slow"


class BodyTooSlow(RequestError):
    status, code = 408, "body_too_slow"

    @classmethod
    def after(cls, seconds: float) -> Self:
        return cls(f"the body wasn't there within {seconds:g} s: send it at once")


class RateLimited(RequestError):
    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class HeadersTooLarge(RequestError):
    status, code = 431, "headers_too_large"


class RequestCancelled(RequestError):
    status, code = 499, "request_cancelled"


class RequestNotFound(RequestError):
    status, code = 404, "request_not_found"


class RouteNotFound(RequestError):
    status, code = 404, "route_not_found"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"


class ServiceError(ServeAppError):
    """The service could not serve this request; the same request may work later or elsewhere."""

    type = "service_unavailable_error"


class ModelNotReady(ServiceError):
    """`public_message` is what anybody may read; `message` may name folders and nodes."""

    status, code = 503, "model_not_ready"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        public_message: str | None = None,
    ) -> None:
        super().__init__(message, param, retry_after_s)
        self.args = (message, param, retry_after_s, public_message)
        self.public_message = public_message

    @classmethod
    def because(cls, what: str, why: str | None, retry_after_s: float | None) -> "ModelNotReady":
        """The reason `why` is only for those who run the service; `what` is for everybody."""
        hint = "try again later" if retry_after_s else "tell whoever runs this service"
        return cls(f"{what}: {why or hint}", "model", retry_after_s, f"{what}: {hint}")

    def for_strangers(self) -> "ModelNotReady":
        error = ModelNotReady(self.public_message or self.message, self.param, self.retry_after_s)
        error.model = self.model
        return error


class Overloaded(ServiceError):
    status, code = 503, "overloaded"


class ShuttingDown(ServiceError):
    status, code = 503, "shutting_down"


class ReplicaDied(ServiceError):
    status, code = 503, "replica_died"


class DeadlineExceeded(ServiceError):
    status, code, type = 504, "deadline_exceeded", "timeout_error"


class EngineFailed(ServiceError):
    status, code, type = 500, "engine_failed", "server_error"


class InternalError(ServiceError):
    status, code, type = 500, "internal_error", "server_error"


class ConfigError(Exception):
    """A configuration that can't work: the sentence names the file or key and the fix. Never sent to clients."""


def error_json(error: ServeAppError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def concrete_errors() -> list[type[ServeAppError]]:
    """Every error class that has a status and code of its own."""
    return [leaf for family in ServeAppError.__subclasses__() for leaf in family.__subclasses__()]
