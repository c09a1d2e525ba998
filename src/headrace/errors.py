"""Everything that can go wrong, in one tree.

::

    HeadraceError
    +-- RequestError               answered to a client, OpenAI-shaped; has status and code
    |   +-- InvalidRequest           400 invalid_request
    |   |   +-- ContextLengthExceeded  400 context_length_exceeded
    |   |   +-- UnsupportedField       400 unsupported_parameter
    |   +-- AuthenticationFailed     401 invalid_api_key
    |   +-- Forbidden                403 forbidden
    |   +-- ModelNotFound            404 model_not_found
    |   +-- RouteNotFound            404 not_found
    |   +-- MethodNotAllowed         405 method_not_allowed
    |   +-- PayloadTooLarge          413 payload_too_large
    |   +-- UnsupportedMediaType     415 unsupported_media_type
    |   +-- RateLimited              429 rate_limit_exceeded    retryable
    |   +-- HeadersTooLarge          431 headers_too_large
    |   +-- EngineFault              500 engine_fault
    |   +-- PoisonRequest            500 request_rejected_poison
    |   +-- ReplicaLost              502 worker_lost            retryable
    |   +-- Overloaded               503 overloaded             retryable
    |   +-- NotReady                 503 not_ready              retryable
    |   +-- DeadlineInfeasible       503 deadline_infeasible    retryable
    |   +-- DeadlineExceeded         504 deadline_exceeded
    +-- StartError                 ends a command with exit_code and one clear line
    |   +-- UsageError               2
    |   |   +-- ConfigError
    |   |   +-- ModelFileError         a model file that is missing, truncated or hostile
    |   |   +-- UnknownModel
    |   +-- ModelTooLarge            1
    |   +-- AddressInUse             1
    |   +-- DownloadFailed           1
    |   +-- MissingExtra             1
    |   +-- Unreachable              3
    +-- BadGrammar                 a constraint that no output can be held to; its request ends
    +-- ExecutorFault              the device failed; the engine restarts
    +-- ProtocolError              a peer process broke the wire protocol; the connection ends
    +-- InvariantBroken            a bug of ours; the machine is dead (M5)

Messages hold the values and say what to do.
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Root of the tree."""


class RequestError(HeadraceError):
    """An answer to a client. ``param`` names the offending field, where there is one."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds, for the Retry-After header


class InvalidRequest(RequestError):
    """The request itself is wrong."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or prompt and max_tokens together, do not fit the model's context."""

    code = "context_length_exceeded"


class UnsupportedField(InvalidRequest):
    """A field that we know and do not carry out: refused rather than ignored."""

    code = "unsupported_parameter"


class AuthenticationFailed(RequestError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class Forbidden(RequestError):
    """Known or not, whoever asks may not do this, or not from there."""

    status = 403
    code = "forbidden"
    kind = "permission_error"


class ModelNotFound(RequestError):
    """No such model is served here."""

    status = 404
    code = "model_not_found"
    kind = "invalid_request_error"


class RouteNotFound(RequestError):
    """No such path."""

    status = 404
    code = "not_found"
    kind = "invalid_request_error"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not. ``allow`` is for the Allow header field."""

    allow = ""

    status = 405
    code = "method_not_allowed"
    kind = "invalid_request_error"


class PayloadTooLarge(RequestError):
    """The body is over the limit."""

    status = 413
    code = "payload_too_large"
    kind = "invalid_request_error"


class UnsupportedMediaType(RequestError):
    """Not JSON, or a content encoding that is not accepted."""

    status = 415
    code = "unsupported_media_type"
    kind = "invalid_request_error"


class RateLimited(RequestError):
    """The client is over a limit of its own; the server is not."""

    status = 429
    code = "rate_limit_exceeded"
    kind = "rate_limit_error"
    retryable = True


class HeadersTooLarge(RequestError):
    """Too many header fields, or too long."""

    status = 431
    code = "headers_too_large"
    kind = "invalid_request_error"


class EngineFault(RequestError):
    """The engine failed while it worked on this request."""

    code = "engine_fault"


class PoisonRequest(RequestError):
    """Replicas died of this request: it is not sent to another one. No retry helps."""

    code = "request_rejected_poison"


class ReplicaLost(RequestError):
    """The replica died and the request cannot go on elsewhere."""

    status = 502
    code = "worker_lost"
    retryable = True


class Overloaded(RequestError):
    """A bounded queue is full."""

    status = 503
    code = "overloaded"
    kind = "overloaded_error"
    retryable = True


class NotReady(RequestError):
    """No replica is ready, or the server is shutting down."""

    status = 503
    code = "not_ready"
    kind = "overloaded_error"
    retryable = True


class DeadlineInfeasible(RequestError):
    """What a request asks of its time cannot be had here now; said before any work is done."""

    status = 503
    code = "deadline_infeasible"
    kind = "overloaded_error"
    retryable = True


class DeadlineExceeded(RequestError):
    """The request's time is over."""

    status = 504
    code = "deadline_exceeded"
    kind = "timeout_error"


class StartError(HeadraceError):
    """A command cannot go on: it prints the message as one line and ends with ``exit_code``."""

    exit_code: ClassVar[int] = 1


class UsageError(StartError):
    """The command line or a file named on it is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or out of range; the message names its origin."""


class ModelFileError(UsageError):
    """A model file is missing, truncated, hostile or of an unknown kind."""


class UnknownModel(UsageError):
    """No such name in the registry; the message offers near ones."""


class ModelTooLarge(StartError):
    """Weights and KV cache do not fit in memory."""


class AddressInUse(StartError):
    """The port is taken."""


class DownloadFailed(StartError):
    """A model could not be fetched or its checksum differs."""


class MissingExtra(StartError):
    """An optional dependency is not installed; the message has the pip line."""


class Unreachable(StartError):
    """A server that a client command needs does not answer."""

    exit_code = 3


class BadGrammar(HeadraceError):
    """A constraint is no grammar, or costs more than is allowed. The message is for the client."""


class ExecutorFault(HeadraceError):
    """The device failed as a whole."""


class ProtocolError(HeadraceError):
    """A peer process sent what the wire protocol does not allow."""


class InvariantBroken(HeadraceError):
    """A bug of ours. The message holds the arithmetic."""
