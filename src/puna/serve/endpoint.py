"""HTTP for every route: reading a body, errors, and clients that leave.

In: requests. Out: values of their type, or the one shape of errors. Here live the limits while reading. A client that
has left takes its work with it, whether it read a stream or waited for a document.
Not here: what requests mean, sending answers (`sending`), the table of status codes (`refusal`).

Source of the shapes: OpenAI's and Anthropic's API references, errors.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.serve import schema, stream
from puna.serve.cork import LEAVING
from puna.serve.refusal import Refusal, busy, refusal_from
from puna.serve.sending import GoneError, json_response
from puna.serve.state import State

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
ANTHROPIC_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
ANTHROPIC_PATHS = "/v1/messages"
"""Errors below this path have Anthropic's shape, all others OpenAI's."""

_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_Asked = TypeVar("_Asked")


class _LeftError(Exception):
    """The client left while its body was read."""


class Endpoint(Generic[_Asked]):
    """A POST whose body is a `kind` and whose answer `act` sends, for as long as it likes.

    `act` is dropped when the client leaves, and whatever it raises becomes an error in the shape of its path.
    """

    def __init__(
        self, state: State, kind: type[_Asked], act: Callable[[State, _Asked, Send], Coroutine[Any, Any, None]]
    ) -> None:
        self._state = state
        self._kind = kind
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self._state)
        try:
            asked = await _read(self._state, scope, receive, self._kind, body)
            async with _unless_gone(scope, receive):
                await self._act(self._state, asked, send)
        except _LeftError:  # nobody waits for an answer
            return
        except GoneError:
            self._state.metrics.disconnects.inc()
        except Exception as error:  # told here, since what reaches the HTTP server closes the connection
            await refused(refusal_from(error), scope["path"])(scope, receive, send)
        finally:
            body.let_go()


async def _read(state: State, scope: Scope, receive: Receive, kind: type[_Asked], body: "_Body") -> _Asked:
    """Returns a request's body as `kind`. Raises Refusal when it is too long, too slow or not what it should be.

    Refuses also while the server is going down, and where the body's field `model` names another model.
    """
    if state.is_draining:
        raise busy("the server is going down: try another one", 503)
    await body.read(scope, receive)
    try:
        asked = msgspec.json.decode(body.data, type=kind)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        unknown = re.search(r"unknown field `([^`]*)`", str(error))
        named = ".".join(filter(None, (place[1] if place else "", unknown[1] if unknown else "")))
        remedy = ": it is not known here, leave it out" if unknown else ""
        raise Refusal(400, f"{error}{remedy}", param=named or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}") from error
    state.require_model(getattr(asked, "model", None))
    return asked


def failed_event(refusal: Refusal) -> bytes:
    """Returns the event that ends a stream of OpenAI's chat and completions."""
    return stream.event(schema.Error(error=refusal.body))


def refused(refusal: Refusal, path: str) -> Response:
    """Returns a refusal as the clients of `path` read it."""
    status, body = refusal.status, refusal.body
    if path.startswith(ANTHROPIC_PATHS):
        detail = {"type": ANTHROPIC_KINDS.get(status, "invalid_request_error"), "message": body.message}
        response = json_response({"type": "error", "error": detail}, status)
    else:
        body = msgspec.structs.replace(body, type=KINDS.get(status, body.type))
        response = json_response(schema.Error(error=body), status)
    response.headers.update(refusal.headers)
    return response


class _Body:
    """The body of one request. Its bytes count towards what all bodies together may hold until it is let go."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.data = bytearray()

    async def read(self, scope: Scope, receive: Receive) -> None:
        """Reads it all. Raises Refusal when it is too long or too slow, or when others hold too much."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if announced.isdigit():
            self._check_length(int(announced[:20]))
        try:
            async with asyncio.timeout(self._state.settings.body_seconds):
                is_whole = False
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _LeftError
                    self._add(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
        except TimeoutError as error:
            raise Refusal(408, "the body took too long to arrive: try again") from error

    def _add(self, part: bytes) -> None:
        if self._state.n_body_bytes + len(part) > self._state.settings.max_bodies_bytes:
            raise busy("others send too much at the same time: try again soon", 503)
        self._state.n_body_bytes += len(part)
        self.data += part
        self._check_length(len(self.data))

    def _check_length(self, n_bytes: int) -> None:
        if n_bytes > (most := self._state.settings.max_body_bytes):
            headers = {"Connection": "close"}
            raise Refusal(413, f"the body has more than {most} bytes: send less", headers=headers)

    def let_go(self) -> None:
        """Gives its bytes back."""
        self._state.n_body_bytes -= len(self.data)
        self.data = bytearray()


@contextlib.asynccontextmanager
async def _unless_gone(scope: Scope, receive: Receive) -> AsyncIterator[None]:
    """Ends what runs within it as soon as the client has left, with GoneError."""
    task = asyncio.current_task()
    assert task is not None, "requests are answered by tasks"
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        task.cancel()

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    leaving = scope.get(LEAVING)
    listening = asyncio.ensure_future(listen()) if leaving is None else None
    try:
        if leaving is not None:
            leaving.add(leave)
        yield
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise GoneError from None
        raise
    finally:
        if leaving is not None:
            leaving.discard(leave)
        if listening is not None:
            listening.cancel()
