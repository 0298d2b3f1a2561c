"""The one error that clients see: `Refusal`, an answer other than 200, with the field that is to blame.

In: what is wrong with a request. Out: a status and OpenAI's error body.
Not here: when something is refused, HTTP.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

from puna.errors import PromptError
from puna.serve.schema import ErrorBody

_NAMED = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?: is |: | has | holds )")
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "allowed_ids": "allowed_token_ids",
    "stop_ids": "stop_token_ids",
}
"""What clients call what the assistant calls otherwise."""


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
