"""One send for all that a connection writes in one turn of the event loop, where uvicorn makes one for each write.

In: uvicorn's protocol for HTTP/1.1. Out: the same, with fewer system calls: the head of an answer leaves with its first
events, and the end of a stream with its last one. On a loopback a send takes some ten microseconds here and wakes the
reader there, as much as everything else that an event costs.
It also says at once when a client leaves, where others have each request wait for that in a task of its own.
Not here: what is written.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LEAVING = "puna.leaving"
"""In the scope of a request: a set, whose functions are called when its client has left."""


class CorkedProtocol(HttpToolsProtocol):
    """HTTP/1.1 over a corked transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._leaving: set[Callable[[], None]] = set()
        super().connection_made(Cork(transport, self.loop))  # type: ignore[arg-type]

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self.scope[LEAVING] = self._leaving  # type: ignore[literal-required]

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the requests of the connection."""
        super().connection_lost(exc)
        for leave in tuple(self._leaving):
            leave()


class Cork:
    """A transport that keeps what is written until the event loop's next turn. Everything else is the transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keeps some bytes until then."""
        if not self._kept:
            self._loop.call_soon(self._flush)
        self._kept.append(data)

    def close(self) -> None:
        """Writes what is kept, and closes when it has been sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._kept and not self._transport.is_closing():
            self._transport.write(b"".join(self._kept))
        self._kept.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
