"""HTTP for every route: reading a body, sending a document or a stream, errors, and clients that leave.

In: requests. Out: values of their type, or the one shape of errors. Here live the table of status codes and the limits
while reading. A client that has left takes its work with it, whether it read a stream or waited for a document.
Not here: what requests mean.

Source of the shapes: OpenAI's and Anthropic's API references, errors.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.errors import CapacityError, PromptError
from puna.serve import schema, stream
from puna.serve.convert import Refusal, refusal_of
from puna.serve.state import State
from puna.serve.worker import FullError

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

_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events would make a stream pointless
]
_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_Asked = TypeVar("_Asked")
_log = logging.getLogger("puna.serve")


class StalledError(Exception):
    """A client does not read what it is sent."""


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
        request, body = Request(scope, receive, send), _Body(self._state)
        try:
            asked = await _read(self._state, request, self._kind, body)
            await self._unless_gone(receive, self._act(self._state, asked, send))
        except ClientDisconnect:  # while the body was read: nobody waits for an answer
            return
        except StalledError:
            self._state.metrics.disconnects.inc()
        except Exception as error:  # told here, since what reaches the HTTP server closes the connection
            await refused(refusal_from(error), scope["path"])(scope, receive, send)
        finally:
            body.let_go()

    async def _unless_gone(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` to its end, or drops it as soon as the client has left."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._state.metrics.disconnects.inc()
                return
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        working.result()


async def _read(state: State, request: Request, kind: type[_Asked], body: "_Body") -> _Asked:
    """Returns a request's body as `kind`. Raises Refusal when it is too long, too slow or not what it should be.

    Refuses also while the server is going down, and where the body's field `model` names another model.
    """
    if state.is_draining:
        raise busy("the server is going down: try another one", 503)
    await body.read(request)
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


async def send_document(send: Send, document: msgspec.Struct) -> None:
    """Sends a whole answer."""
    response = json_response(document)
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def send_events(
    state: State,
    send: Send,
    events: AsyncIterator[bytes],
    *,
    failed: Callable[[Refusal], bytes],
    ping: bytes = stream.PING,
) -> None:
    """Sends events as they come, and `ping` in silence. What goes wrong on the way is the last event, from `failed`.

    The status is sent before the first event, so whatever is to be refused with one of its own is raised before.
    """
    await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
    silence = _Silence()
    pinging = asyncio.ensure_future(_ping_in(silence, state, send, ping))
    try:
        async for event in events:
            await _send_part(state, send, event)
            silence.is_silent = False
    except StalledError:
        raise
    except Exception as error:
        await _send_part(state, send, failed(refusal_from(error)))
    finally:
        pinging.cancel()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def failed_event(refusal: Refusal) -> bytes:
    """Returns the event that ends a stream of OpenAI's chat and completions."""
    return stream.event(schema.Error(error=refusal.body))


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


def json_response(document: Any, status: int = 200) -> Response:
    """Returns a document as JSON."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


class _Body:
    """The body of one request. Its bytes count towards what all bodies together may hold until it is let go."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.data = bytearray()

    async def read(self, request: Request) -> None:
        """Reads it all. Raises Refusal when it is too long or too slow, or when others hold too much."""
        settings, most = self._state.settings, self._state.settings.max_body_bytes
        too_long = Refusal(413, f"the body has more than {most} bytes: send less", headers={"Connection": "close"})
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > most:
            raise too_long
        try:
            async with asyncio.timeout(settings.body_seconds):
                async for part in request.stream():
                    if self._state.n_body_bytes + len(part) > settings.max_bodies_bytes:
                        raise busy("others send too much at the same time: try again soon", 503)
                    self._state.n_body_bytes += len(part)
                    self.data += part
                    if len(self.data) > most:
                        raise too_long
        except TimeoutError as error:
            raise Refusal(408, "the body took too long to arrive: try again") from error

    def let_go(self) -> None:
        """Gives its bytes back."""
        self._state.n_body_bytes -= len(self.data)
        self.data = bytearray()


class _Silence:
    """Whether a stream has sent nothing since somebody looked."""

    def __init__(self) -> None:
        self.is_silent = True


async def _ping_in(silence: _Silence, state: State, send: Send, ping: bytes) -> None:
    """Sends `ping` whenever nothing was sent for as long as the settings say, twice that at most; never ends.

    It waits where the client does not read, which `_send_part` notices with the next event.
    """
    while True:
        silence.is_silent = True
        await asyncio.sleep(state.settings.ping_seconds)
        if silence.is_silent:
            await send({"type": "http.response.body", "body": ping, "more_body": True})


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(state: State, send: Send, body: bytes) -> None:
    """Sends a part of a stream. Raises StalledError when what was sent before is not read for too long."""
    if not body:
        return
    try:
        async with asyncio.timeout(state.settings.stall_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": True})
    except TimeoutError as error:
        raise StalledError from error
