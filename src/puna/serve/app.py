"""The server: its routes, and its end.

In: what stands before a model, who runs it, and settings. Out: an ASGI application, and `run`, which serves it until it
is told to stop. On SIGTERM nothing new is accepted, what runs is finished, a second signal ends at once.
Not here: what the routes do. Each file of routes has a function `routes` that `ROUTES` lists; it is given the `State`
that all share.
"""

import contextlib
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from puna.chat import Assistant, Prompter
from puna.errors import CapacityError, ConfigError, PromptError
from puna.serve import chat, completions, look, messages, models, moderations, openapi, responses, tokens
from puna.serve.convert import Refusal
from puna.serve.cork import CorkedProtocol
from puna.serve.endpoint import refused
from puna.serve.front import Keys, Log, Posts
from puna.serve.guarding import Guarding, announced
from puna.serve.refusal import refusal_from
from puna.serve.state import Settings, State
from puna.serve.stepping import ThreadStepper, settle_memory
from puna.serve.worker import Stepper

__all__ = ["LOCAL_HOSTS", "ROUTES", "Listener", "Server", "Settings", "listen", "log_to_stderr", "run"]

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

KEEP_ALIVE_SECONDS = 75
"""How long a connection may be silent between requests: longer than clients and proxies keep one they do not use (5 and
60 seconds are common), and than a busy machine holds this process up, so that nobody asks where nobody listens."""

ROUTES: list[Callable[[State], list[Any]]] = [
    chat.routes,
    completions.routes,
    responses.routes,
    messages.routes,
    moderations.routes,
    models.routes,
    tokens.routes,
    openapi.routes,
    look.routes,
]
"""What is served, one function for each file of routes: what is asked most comes first."""


class Server:
    """One model behind HTTP. `app` is the ASGI application; `drain` begins the end."""

    def __init__(
        self, prompter: Prompter, stepper: Stepper, settings: Settings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.state = State(prompter, stepper, settings, clock)
        self.worker = self.state.worker
        self.metrics = self.state.metrics
        self.app = _application(self.state)

    def drain(self) -> None:
        """Refuses new work from now on; what runs goes on."""
        self.state.is_draining = True


@contextlib.asynccontextmanager
async def running(state: State) -> AsyncIterator[None]:
    """Has requests answered for as long as it is entered."""
    await state.worker.start()
    state.watch.start()
    try:
        yield
    finally:
        state.watch.stop()
        await state.worker.stop()


def _application(state: State) -> ASGIApp:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with running(state):
            yield

    async def tell(request: Request, error: Exception) -> Response:
        return refused(refusal_from(error), request.url.path)

    handlers: dict[Any, Any] = dict.fromkeys((Refusal, PromptError, CapacityError, HTTPException, Exception), tell)
    routes: list[BaseRoute] = [route for of_file in ROUTES for route in of_file(state)]
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    keyed = announced(Keys(Posts(app, routes), state.settings.keys), state.settings.screen)
    return Log(_for_pages_of(state.settings.origins, keyed) if state.settings.origins else keyed)


def _for_pages_of(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Lets web pages of these origins ask; browsers ask without a key whether they may."""
    headers = ("Authorization", "Content-Type", "X-Api-Key", "Anthropic-Version")
    return CORSMiddleware(app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=headers)


class Listener(uvicorn.Server):
    """Serves on a socket. Ends after the first signal once all is finished, and at once after the second."""

    def __init__(self, server: Server, *, drain_seconds: int) -> None:
        super().__init__(
            uvicorn.Config(
                server.app,
                http=CorkedProtocol,
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,  # nothing here depends on where a client is
                timeout_graceful_shutdown=drain_seconds,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._server = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._server.drain()
        self.force_exit = self.should_exit
        self.should_exit = True


class Address(NamedTuple):
    """A socket that takes connections, and what clients call it."""

    listening: socket.socket
    url: str


def listen(host: str, port: int, settings: Settings) -> Address:
    """Takes connections from now on, which wait until somebody serves. Raises ConfigError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; choose another, or 0 for any free port") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections whose other side reads nothing, with what they hold
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * settings.stall_seconds))
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return Address(listening, f"http://{shown}:{listening.getsockname()[1]}/v1")


def run(
    assistant: Assistant,
    settings: Settings,
    guarding: Guarding | None = None,
    *,
    host: str,
    port: int,
    drain_seconds: int,
    say: Callable[[str], None],
) -> None:
    """Serves in this process until SIGINT or SIGTERM, then finishes what runs for at most `drain_seconds`.

    `say` gets the address that clients use, once connections to it are taken. Raises ConfigError when the address is
    not free. Where the model may have the process to itself, `apart.run` serves more.
    """
    address = listen(host, port, settings)
    screen = None if guarding is None else guarding.protections(assistant)
    stepper = ThreadStepper(assistant, settings.events_per_second)
    server = Server(assistant.prompter, stepper, replace(settings, screen=screen))
    settle_memory()
    say(address.url)
    Listener(server, drain_seconds=drain_seconds).run(sockets=[address.listening])


def log_to_stderr() -> None:
    """Has the server's log written, one line for each request."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("puna.serve", "puna.guard"):
        logging.getLogger(name).setLevel(logging.INFO)
