"""What stands before all routes: keys, and the log.

In: every request. Out: the same, or a 401. No line of the log holds anything that a user wrote.
Not here: routes.
"""

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serve.convert import Refusal
from puna.serve.endpoint import Endpoint, refused

OPEN_PATHS = ("/", "/health", "/ready")
OPEN_PREFIXES = ("/page/",)
"""What is answered without a key: how the server is, and the page, which holds nothing secret."""

_log = logging.getLogger("puna.serve")


class Keys:
    """Lets only those in who have a key. Comparing takes the same time for every wrong key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
        if scope["type"] == "http" and self._digests and not is_open and not self._opens(scope):
            message = "no API key that is valid here: send the header Authorization: Bearer KEY"
            refusal = Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            await refused(refusal, path)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _opens(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = (
            key if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        )  # the latter as Anthropic's clients
        digest = hashlib.sha256(given.strip()).digest()
        matches = [hmac.compare_digest(digest, each) for each in self._digests]  # all, so that order does not show
        return any(matches)


class Posts:
    """Takes posts straight to their endpoints, which see to errors themselves; everything else goes on."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._endpoints = {
            each.path: each.app for each in routes if isinstance(each, Route) and isinstance(each.app, Endpoint)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await (self._endpoints.get(scope["path"], self._app) if is_post else self._app)(scope, receive, send)


class Log:
    """Writes one line of JSON per request: what was asked, how it ended, how long it took."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = round(time.monotonic() - begin, 4)
            line = {"method": scope["method"], "path": scope["path"][:200], "status": status, "seconds": seconds}
            _log.info(json.dumps(line))
