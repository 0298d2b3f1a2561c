"""The server: its routes, and its end.

In: an assistant and settings. Out: an ASGI application, and `run`, which serves it until it is told to stop. On SIGTERM
nothing new is accepted, what runs is finished, a second signal ends at once.
Not here: what the routes do. Each file of routes has a function `routes` that `ROUTES` lists; it is given the `State`
that all share.
"""

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from puna.chat import Assistant
from puna.errors import CapacityError, ConfigError, PromptError
from puna.serve import chat, completions, look, messages, models, moderations, openapi, responses, tokens
from puna.serve.convert import Refusal
from puna.serve.endpoint import refusal_from, refused
from puna.serve.front import Keys, Log
from puna.serve.guarding import announced
from puna.serve.state import Settings, State

__all__ = ["LOCAL_HOSTS", "ROUTES", "Server", "Settings", "run"]

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

ROUTES: list[Callable[[State], list[Any]]] = [
    models.routes,
    tokens.routes,
    chat.routes,
    completions.routes,
    responses.routes,
    messages.routes,
    moderations.routes,
    openapi.routes,
    look.routes,
]
"""What is served, one function for each file of routes."""


class Server:
    """One assistant behind HTTP. `app` is the ASGI application; `drain` begins the end."""

    def __init__(self, assistant: Assistant, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.state = State(assistant, settings, clock)
        self.worker = self.state.worker
        self.metrics = self.state.metrics
        self.app = _application(self.state)

    def drain(self) -> None:
        """Refuses new work from now on; what runs goes on."""
        self.state.is_draining = True


def _application(state: State) -> ASGIApp:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        state.worker.start()
        try:
            yield
        finally:
            await state.worker.stop()

    async def tell(request: Request, error: Exception) -> Response:
        return refused(refusal_from(error), request.url.path)

    handlers: dict[Any, Any] = dict.fromkeys((Refusal, PromptError, CapacityError, HTTPException, Exception), tell)
    routes: list[BaseRoute] = [route for of_file in ROUTES for route in of_file(state)]
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    keyed = announced(Keys(app, state.settings.keys), state.settings.screen)
    return Log(_for_pages_of(state.settings.origins, keyed) if state.settings.origins else keyed)


def _for_pages_of(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Lets web pages of these origins ask; browsers ask without a key whether they may."""
    headers = ("Authorization", "Content-Type", "X-Api-Key", "Anthropic-Version")
    return CORSMiddleware(app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=headers)


class _Uvicorn(uvicorn.Server):
    """Ends with exit code 0 after the first signal once all is finished, and at once after the second."""

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_drain = on_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_drain()
        self.force_exit = self.should_exit
        self.should_exit = True


def run(
    assistant: Assistant, settings: Settings, *, host: str, port: int, drain_seconds: int, say: Callable[[str], None]
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what runs for at most `drain_seconds`.

    `say` gets the address that clients use, once connections to it are taken. Raises ConfigError when the address is
    not free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; choose another, or 0 for any free port") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections whose other side reads nothing, with what they hold
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * settings.stall_seconds))
    server = Server(assistant, settings)
    config = uvicorn.Config(
        server.app,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    say(f"http://{shown}:{listening.getsockname()[1]}/v1")
    _Uvicorn(config, server.drain).run(sockets=[listening])
