"""The one error that clients see: `Refusal`, an answer other than 200, with the field that is to blame.

In: what is wrong with a request. Out: a status and OpenAI's error body. Here lives the table of status codes.
Not here: when something is refused, HTTP.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping

from starlette.exceptions import HTTPException

from puna.errors import CapacityError, PromptError
from puna.serve.schema import ErrorBody
from puna.serve.worker import FullError

_NAMED = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?: is |: | has | holds )")
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "allowed_ids": "allowed_token_ids",
    "stop_ids": "stop_token_ids",
}
"""What clients call what the assistant calls otherwise."""

_log = logging.getLogger("puna.serve")


class Refusal(Exception):  # noqa: N818  a refusal is what it is: a request was understood and will not be served
    """An answer other than 200: status, and OpenAI's error body. `headers` go along."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, type=kind, param=param, code=code)
        self.headers = dict(headers or {})


def refusal_of(error: PromptError, names: Mapping[str, str] = _NAMES) -> Refusal:
    """Returns a 400 whose `param` is the field that the message begins with, if it does, called as in `names`."""
    message = str(error)
    named = _NAMED.match(message)
    if named is None:
        return Refusal(400, message)
    name = names.get(named[1], named[1])
    return Refusal(400, name + message.removeprefix(named[1]), param=name)


def refusal_from(error: Exception) -> Refusal:
    """Returns what a client is told of an error. This is the table of status codes."""
    match error:
        case Refusal():
            return error
        case PromptError():
            return refusal_of(error)
        case FullError():
            return busy(str(error), 429)
        case CapacityError():  # more than there will ever be, so coming back does not help
            return Refusal(400, str(error), code="context_length_exceeded")
        case HTTPException():
            return Refusal(error.status_code, error.detail, headers=error.headers)
    _log.error("a request failed", exc_info=error)
    return Refusal(500, "something failed here, not in the request: the server's log says what", kind="server_error")


def busy(message: str, status: int) -> Refusal:
    """Returns a refusal that asks to come back."""
    return Refusal(status, message, code="overloaded", kind="overloaded_error", headers={"Retry-After": "1"})


@contextlib.contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Lets a PromptError out as a Refusal whose field has the name that clients know it by."""
    try:
        yield
    except PromptError as error:
        raise refusal_of(error, {**_NAMES, **names}) from error


def require(condition: bool, param: str, problem: str) -> None:
    """Raises a 400 that says what is wrong with `param`, unless the condition holds."""
    if not condition:
        raise Refusal(400, f"{param} {problem}", param=param)
