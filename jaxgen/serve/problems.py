"""What a request is refused with: a status, and the error object that OpenAI's clients read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxgen.errors import CheckpointError, ConfigError, DataError, UserError
from jaxgen.serve.tickets import Draining, QueueFull

# Status: (type, code) of the error object.
KINDS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("timeout_error", "timeout"),
    413: ("invalid_request_error", "body_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    431: ("invalid_request_error", "head_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("service_unavailable", "unavailable"),
}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
RETRY = {429: 1, 503: 5}  # seconds until another try is worth it


class Problem(UserError):  # noqa: N818  it is what a client has, not what went wrong here
    """A request that is refused; param: the field at fault; code: None takes the status's."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """Return the error object."""
        kind, code = KINDS.get(self.status, KINDS[400 if self.status < 500 else 500])
        about = {"type": kind, "param": self.param, "code": self.code or code}
        return {"error": {"message": str(self), **about}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        wait = RETRY.get(self.status)
        more = {} if wait is None else {"retry-after": str(wait)}
        return more | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def problem_of(error: BaseException, named: Mapping[str, str], given: Iterable[str]) -> Problem:
    """Return an error as what a client gets; one that is not a client's has no details.

    named: {a setting of ours: the field that sets it}; given: fields of the request.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, QueueFull):
        return Problem("too many requests are waiting; try again soon", 429)
    if isinstance(error, Draining):
        return Problem("the server is shutting down", 503, code="draining")
    if isinstance(error, ConfigError | DataError):
        return _renamed(str(error), named, set(given))
    if isinstance(error, CheckpointError):  # of a chat template, which a message made fail
        return Problem(str(error), 400, param="messages")
    if isinstance(error, UserError):  # such as logits that are not finite
        return Problem(str(error), 500)
    kind = type(error).__name__
    return Problem(f"an internal error ({kind}); the server's log has it by this request's id", 500)


def _renamed(text: str, named: Mapping[str, str], given: set[str]) -> Problem:
    """Return the refusal with the names of the API, and as `param` the first it speaks of."""
    pattern = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, named))})(?=[=\[\s;,])")
    text = pattern.sub(lambda found: named[found[1]], text)
    words = re.findall(r"[A-Za-z_]\w*", text)
    words = [*LENGTHS, *words] if "new tokens" in text else words
    return Problem(text, param=next((word for word in words if word in given), None))
