"""The model in this process, HTTP in another: so neither waits for the other's Python.

In: an assistant and settings. Out: the same server as `app.run`. The process that was started owns the model and runs
nothing but its steps; another one that it starts has the sockets, the prompts and everything that clients see. Between
them is one socket: orders one way, one report a step the other way, whatever the number of requests. The steps never
wait for clients; a client that is behind gets what has come meanwhile as one event.

Whichever process ends first takes the other with it: each sees that the socket closed. A signal to the first is passed
on, HTTP finishes what runs and ends, then the first ends too, with exit code 0. Everything else is a DeviceError.

Prompts that are text travel as msgpack, other orders pickled, by a process that this one started, for this one.
Source: Python's documentation, `pickle`.
"""

import asyncio
import contextlib
import io
import logging
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
import torch

from puna.chat import Assistant, Options, Prompter
from puna.errors import DeviceError, PunaError
from puna.prompt.render import Prompt
from puna.serve import app, stepping
from puna.serve.cork import Cork
from puna.serve.guarding import Guarding
from puna.serve.orders import Begin, End, Order, Problem, Report
from puna.serve.state import Settings

NICENESS = 15
"""Of the process that serves HTTP: on a machine where both want the processors, steps come first."""

_BUFFER_BYTES = 4 * 2**20  # of reports that HTTP has not read: then the model waits
_COMPILING_SECONDS = 0.002  # between looks at grammars that are compiled while there is nothing to compute
_LENGTH = struct.Struct("<I")
_log = logging.getLogger("puna.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that the process for HTTP is told when it starts."""

    prompter: Prompter
    settings: Settings
    guarding: Guarding | None
    tells_routes: bool
    drain_seconds: int
    logs: bool


class Ready(NamedTuple):
    """HTTP can be served: the first thing that is told, or else the problem that keeps it from being so."""


# The process that has the model ---------------------------------------------------------------------------------------


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
    """Serves until SIGINT or SIGTERM, then finishes what runs for at most `drain_seconds`. For a main thread.

    `say` gets the address that clients use, once it is served. Raises ConfigError when the address is not free, and
    DeviceError when the other process ends without being told to.
    """
    address = app.listen(host, port, settings)
    with Face(assistant, settings, guarding, address.listening, drain_seconds=drain_seconds) as face, _passing_on(face):
        say(address.url)
        face.step()


class Face:
    """Another process that serves HTTP, for as long as this is open; `step` runs the model for it.

    Raises on entry what keeps that process from serving.
    """

    def __init__(
        self,
        assistant: Assistant,
        settings: Settings,
        guarding: Guarding | None,
        listening: socket.socket,
        *,
        drain_seconds: int,
    ) -> None:
        self._assistant = assistant
        self._listening = listening
        self._setup = Setup(
            prompter=assistant.prompter,
            settings=replace(settings, screen=None),
            guarding=guarding,
            tells_routes=stepping.tells_routes(assistant),
            drain_seconds=drain_seconds,
            logs=_log.isEnabledFor(logging.INFO),
        )

    def __enter__(self) -> "Face":
        self._line, other = socket.socketpair()
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        fds = other.fileno(), self._listening.fileno()
        # -P: nothing in the current directory is taken for a module. A group of its own: Ctrl-C is for this process.
        command = [sys.executable, "-P", "-c", f"from puna.serve import apart; apart.serve({fds[0]}, {fds[1]})"]
        self.process = subprocess.Popen(command, pass_fds=fds, process_group=0)
        other.close()
        self._listening.close()
        try:
            _send(self._line, _pickled(self._setup))
            first = _receive(self._line)
            if first is None:
                raise self._lost()
            if isinstance(first, Problem):
                raise first.error()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def step(self) -> None:
        """Runs the model until the other process has ended. Raises DeviceError unless it was told to."""
        stepping.settle_memory()
        with contextlib.closing(_Inbox(self._line, self._assistant.prompter)) as inbox:
            stepping.run(self._assistant, inbox.take, self._tell, self._setup.settings.events_per_second)
        if self.process.wait() != 0:
            raise self._lost()

    def stop(self) -> None:
        """Tells the other process to end: when it has finished what runs, or at once where this comes again."""
        self.process.send_signal(signal.SIGTERM)

    def _tell(self, report: Report) -> None:
        with contextlib.suppress(OSError):  # the other process is gone, which `_receive` sees
            _send(self._line, msgspec.msgpack.encode(report))

    def _lost(self) -> DeviceError:
        return DeviceError(f"the process that serves HTTP ended with exit code {self.process.wait()}; see the log")

    def _end(self) -> None:
        """Leaves no process behind."""
        self._line.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _passing_on(face: Face) -> Iterator[None]:
    """Has signals that end a server told to the process that serves."""
    before = {number: signal.signal(number, lambda *_: face.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Inbox:
    """Orders from the other process. Grammars are compiled on the side, while the model goes on."""

    def __init__(self, line: socket.socket, prompter: Prompter) -> None:
        self._line = line
        self._prompter = prompter
        self._frames = _Frames()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="puna-grammar")
        self._compiling: dict[int, tuple[Begin, Future[Options]]] = {}  # by number

    def take(self, waits: bool) -> list[Order] | None:
        """Returns the orders that have come, None when there will be none any more; waits for one if it `waits`."""
        orders: list[Order] = []
        while True:
            seconds = 0.0 if orders or not waits else _COMPILING_SECONDS if self._compiling else None
            if select.select([self._line], [], [], seconds)[0]:
                if not (data := self._read()):
                    return None
                orders += [order for body in self._frames.push(data) if (order := self._looked_at(_unpacked(body)))]
            elif orders or not waits:
                return orders + self._compiled()
            else:
                orders += self._compiled()

    def close(self) -> None:
        """Compiles nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> bytes:
        try:
            return self._line.recv(_BUFFER_BYTES)
        except OSError:  # it ended without a word
            return b""

    def _looked_at(self, order: Order) -> Order | None:
        """Returns an order, unless its grammar is to be compiled first, or it ends one that was not."""
        if isinstance(order, Begin) and order.options.get("grammar") is not None:
            self._compiling[order.number] = order, self._pool.submit(self._prompter.compiled, order.options)
            return None
        if isinstance(order, End) and self._compiling.pop(order.number, None) is not None:
            return None
        return order

    def _compiled(self) -> list[Order]:
        """Returns what waited for its grammar and has it. What is wrong with one shows where it is begun."""
        done = [number for number, (_, future) in self._compiling.items() if future.done()]
        return [
            order if future.exception() else order._replace(options=future.result())
            for order, future in map(self._compiling.pop, done)
        ]


# The process that serves HTTP -----------------------------------------------------------------------------------------


def serve(line_fd: int, listening_fd: int) -> None:
    """Serves HTTP for the process at the other end of a socket, and leaves this process with an exit code."""
    line, listening = socket.socket(fileno=line_fd), socket.socket(fileno=listening_fd)
    setup: Setup = _receive(line)
    if setup.logs:
        app.log_to_stderr()
    try:
        protections = None if setup.guarding is None else setup.guarding.protections()
    except PunaError as error:
        _send(line, _pickled(Problem.of(error)))
        sys.exit(1)
    os.nice(NICENESS)
    stepping.settle_memory()
    stepper = LineStepper(line, tells_routes=setup.tells_routes)
    server = app.Server(setup.prompter, stepper, replace(setup.settings, screen=protections))
    listener = app.Listener(server, drain_seconds=setup.drain_seconds)
    stepper.on_loss = partial(setattr, listener, "should_exit", True)
    _send(line, _pickled(Ready()))
    listener.run(sockets=[listening])
    sys.exit(1 if stepper.was_lost else 0)


class LineStepper:
    """The model at the other end of a socket. `on_loss` is called when that end closes of itself."""

    def __init__(self, line: socket.socket, *, tells_routes: bool) -> None:
        self.tells_routes = tells_routes
        self.was_lost = False
        self.on_loss: Callable[[], None] = lambda: None
        self._socket = line
        self._line: _Line | None = None

    @property
    def is_alive(self) -> bool:
        return self._line is not None and not self._line.ended.done()

    async def start(self, tell: Callable[[Report], None], lose: Callable[[PunaError], None]) -> None:
        """Begins to listen."""

        def lost() -> None:
            self.was_lost = True
            _log.error("the process that runs the model has ended")
            lose(DeviceError("the process that runs the model has ended"))
            self.on_loss()

        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        _, self._line = await loop.create_connection(lambda: _Line(tell, lost), sock=self._socket)

    def order(self, order: Order) -> None:
        """Passes an order on."""
        if self._line is not None:
            self._line.send(_packed(order))

    async def stop(self) -> None:
        """Closes this end, which ends the other process's loop after its current step."""
        if self._line is not None:
            self._line.close()
            await self._line.ended


class _Line(asyncio.Protocol):
    """Reports from the socket, and orders to it."""

    def __init__(self, tell: Callable[[Report], None], lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._tell = tell
        self._lost = lost
        self._is_closing = False
        self._frames = _Frames()
        self._decoder = msgspec.msgpack.Decoder(Report)
        self._cork: Cork | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._cork = Cork(cast(asyncio.Transport, transport), self._loop)

    def send(self, body: bytes) -> None:
        """Sends an order, with all others of this turn of the event loop."""
        if self._cork is not None:
            self._cork.write(_framed(body))

    def close(self) -> None:
        """Ends the line, once everything is sent."""
        self._is_closing = True
        if self._cork is not None:
            self._cork.close()

    def data_received(self, data: bytes) -> None:
        """Tells what has come."""
        for body in self._frames.push(data):
            self._tell(self._decoder.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes the end, which is a loss where nobody wanted it."""
        self.ended.set_result(None)
        if not self._is_closing:
            self._lost()


# What travels ---------------------------------------------------------------------------------------------------------


class _Text(msgspec.Struct, array_like=True):
    """An order to begin with a prompt of text: what most of them are, so it is cheap to send."""

    number: int
    ids: list[int]
    options: dict[str, Any]
    joins: bool
    is_whole: bool


_text_decoder = msgspec.msgpack.Decoder(_Text)


def _packed(order: Order) -> bytes:
    if isinstance(order, Begin) and order.prompt.tiles is None and "grammar" not in order.options:
        text = _Text(order.number, order.prompt.ids, {**order.options}, order.joins, order.is_whole)
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # a number too large, say
            return b"t" + msgspec.msgpack.encode(text)
    return b"p" + _pickled(order)


def _unpacked(body: bytes) -> Order:
    kind, packed = body[:1], memoryview(body)[1:]
    if kind == b"p":
        order: Order = pickle.loads(packed)
        return order
    number, ids, options, joins, is_whole = msgspec.structs.astuple(_text_decoder.decode(packed))
    return Begin(number, Prompt(ids, None), options, joins, is_whole)


class _Pickler(pickle.Pickler):
    """Copies tiles once on their way."""

    def reducer_override(self, value: Any) -> Any:
        return (_tensor, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class _Frames:
    """Cuts a stream of bytes into the bodies that were sent, each behind its length."""

    def __init__(self) -> None:
        self._come = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """Returns the bodies that are complete now."""
        self._come += data
        bodies, at = [], 0
        while len(self._come) >= (begin := at + _LENGTH.size):
            end = begin + _LENGTH.unpack_from(self._come, at)[0]
            if len(self._come) < end:
                break
            bodies.append(bytes(self._come[begin:end]))
            at = end
        del self._come[:at]
        return bodies


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def _send(line: socket.socket, body: bytes) -> None:
    line.sendall(_framed(body))


def _receive(line: socket.socket) -> Any:
    """Returns the next value that the other end sends, and no byte more; None where it has closed."""
    head = line.recv(_LENGTH.size, socket.MSG_WAITALL)
    return pickle.loads(line.recv(_LENGTH.unpack(head)[0], socket.MSG_WAITALL)) if head else None
