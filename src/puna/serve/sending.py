"""Answers on their way to clients: a document at once, or events as they come.

In: what is to be sent. Out: ASGI messages. A client that reads nothing for too long counts as gone; a stream that is
silent for a while says that it is still there. One task looks after all streams, so none needs a timer of its own.
Not here: reading requests, errors before an answer has begun (`endpoint`), what events look like (`stream`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Send

from puna.serve import stream
from puna.serve.refusal import Refusal, refusal_from

_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events would make a stream pointless
]
_LOOKS = 4  # within the shorter of the times that are watched


class GoneError(Exception):
    """A client has left, or does not read what it is sent."""


class Watch:
    """Looks after the streams of a server, all of them from time to time."""

    def __init__(
        self, *, ping_seconds: float, stall_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A stream says something after `ping_seconds` of silence; a client may not read for `stall_seconds`."""
        self._ping_seconds = ping_seconds
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._streams: set[_Stream] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look, in this event loop."""
        self._looking = asyncio.ensure_future(self._look())

    def stop(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            self._looking.cancel()

    def over(self, send: Send, ping: bytes) -> "_Stream":
        """Returns the stream of this task, which sends through `send`: for `async with`."""
        task = asyncio.current_task()
        assert task is not None, "streams are sent by tasks"
        return _Stream(self._streams, task, send, ping, self._clock)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(min(self._ping_seconds, self._stall_seconds) / _LOOKS)
            for each in self._streams:
                each.look(self._ping_seconds, self._stall_seconds)


class _Stream:
    """One stream, and since when it waits for its client or says nothing. It begins with what it says first.

    It is watched for as long as it is entered; raises GoneError within, where it stalls.
    """

    def __init__(
        self,
        watched: "set[_Stream]",
        task: asyncio.Task[Any],
        send: Send,
        ping: bytes,
        clock: Callable[[], float],
    ) -> None:
        self._watched = watched
        self.has_begun = False
        self.has_stalled = False
        self._task = task
        self._send = send
        self._ping = ping
        self._clock = clock
        self._since = clock()
        self._is_sending = False
        self._pinging: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "_Stream":
        self._watched.add(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watched.remove(self)
        if self._pinging is not None:
            self._pinging.cancel()
        if kind is asyncio.CancelledError and self.has_stalled and self._task.uncancel() == 0:
            raise GoneError from None

    async def part(self, body: bytes) -> None:
        """Sends some bytes, if there are any."""
        if body:
            self._since, self._is_sending = self._clock(), True
            if not self.has_begun:
                self.has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._is_sending = False

    def look(self, ping_seconds: float, stall_seconds: float) -> None:
        """Ends a stream that has waited too long, and lets one speak that was silent."""
        seconds = self._clock() - self._since
        if self._is_sending and seconds >= stall_seconds:
            self.has_stalled = True
            self._task.cancel()
        elif not self._is_sending and seconds >= ping_seconds and (self._pinging is None or self._pinging.done()):
            self._pinging = asyncio.ensure_future(self.part(self._ping))


async def send_document(send: Send, document: msgspec.Struct) -> None:
    """Sends a whole answer."""
    response = json_response(document)
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def send_events(
    watch: Watch,
    send: Send,
    events: AsyncIterator[bytes],
    *,
    failed: Callable[[Refusal], bytes],
    ping: bytes = stream.PING,
) -> None:
    """Sends events as they come, and `ping` in silence. What goes wrong on the way is the last event, from `failed`.

    The status is sent with the first of them; what goes wrong before that is raised, and has a status of its own.
    """
    async with watch.over(send, ping) as opened:
        try:
            async for event in events:
                await opened.part(event)
        except Exception as error:
            if not opened.has_begun:
                raise
            await opened.part(failed(refusal_from(error)))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(document: Any, status: int = 200) -> Response:
    """Returns a document as JSON."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")
