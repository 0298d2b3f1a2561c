"""The server without a network: a request's body in, a status and a body out, in this process.

What answers is the very application that listens on a port (`app`), with all its addresses, limits and errors.
Not here: files of requests (`batch`).
"""

import asyncio
from typing import Any, NamedTuple

from puna.chat import Assistant
from puna.serve.app import Server, Settings, running
from puna.serve.stepping import ThreadStepper


class Reply(NamedTuple):
    """What a client would have got."""

    status: int
    body: bytes


class Desk:
    """One assistant that answers posts: `async with Desk(...) as desk`. For one event loop."""

    def __init__(self, assistant: Assistant, settings: Settings) -> None:
        self._server = Server(assistant.prompter, ThreadStepper(assistant, settings.events_per_second), settings)

    async def __aenter__(self) -> "Desk":
        self._running = running(self._server.state)
        await self._running.__aenter__()
        return self

    async def __aexit__(self, *told: Any) -> None:
        await self._running.__aexit__(*told)

    async def post(self, path: str, body: bytes) -> Reply:
        """Returns what the server answers to a post of `body` to `path`. Cancelling it drops the answer."""
        pending, status, parts = [{"type": "http.request", "body": body, "more_body": False}], 500, []

        async def receive() -> dict[str, Any]:
            if pending:
                return pending.pop()
            await asyncio.Event().wait()  # a client that stays
            raise AssertionError("nobody sets it")

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        await self._server.app(_scope(path, body), receive, send)
        return Reply(status, b"".join(parts))


def _scope(path: str, body: bytes) -> dict[str, Any]:
    """Source: the ASGI specification, HTTP connection scope, version 2.3."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
