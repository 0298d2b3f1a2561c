"""The loop that runs the model, for all requests together.

In: orders. Out: a report after each step. Between two steps new requests are taken in and those dropped whose clients
left, so nobody waits longer than one step for either. Prompts whose log-probabilities are wanted are read here, too: a
model runs one thing at a time. A step that fails ends every answer in progress, since their caches are unusable then;
the loop goes on with a new session.
Not here: who orders (`worker`), the process it may have to itself (`apart`).
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from puna.chat import Assistant, Piece
from puna.errors import DeviceError, PunaError
from puna.serve.load import Held
from puna.serve.orders import Begin, Count, End, Order, Problem, Report, Score, Settled
from puna.serve.pace import Pace

Take = Callable[[bool], Sequence[Order] | None]
"""Returns the orders that have come, in turn; where it is told to, it waits for one. None ends the loop."""

LOOK_SECONDS = 0.05
"""Between looks at what the engine holds, which takes a hundredth of a step of a small model with many requests."""

_M_ARENA_MAX = -8  # Source: glibc's malloc.h
_NEW_OBJECTS = 20_000  # before the collector looks
_log = logging.getLogger("puna.serve")


def run(assistant: Assistant, take: Take, tell: Callable[[Report], None], events_per_second: float) -> None:
    """Obeys and steps until there are no orders any more. Waits only while there is nothing to compute."""
    stepping = _Stepping(assistant, events_per_second)
    while (orders := take(stepping.is_idle)) is not None:
        for order in orders:
            stepping.obey(order)
        tell(stepping.report() if stepping.is_idle else stepping.step())


def tells_routes(assistant: Assistant) -> bool:
    """Says whether an answer may have its experts: several ranks do not tell each other their routes."""
    has_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    return bool(assistant.config.text.moe_layers) and not has_ranks


def settle_memory() -> None:
    """Has a process keep no more memory, and look at no more of it, than it must; for when all is loaded.

    The garbage collector leaves alone what is there: else it looks at a model's and torch's objects for ever; and it
    looks at what is new less often, since hardly any of that is garbage that goes only with its help. Threads
    share few arenas: with one each, glibc keeps what bodies and pictures took, by hundreds of megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)


class ThreadStepper:
    """The loop in a thread of this process."""

    def __init__(self, assistant: Assistant, events_per_second: float = 0) -> None:
        """`events_per_second` as `Settings` has it."""
        self._assistant = assistant
        self._events_per_second = events_per_second
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()  # None ends the loop
        self._thread: threading.Thread | None = None
        self.tells_routes = tells_routes(assistant)

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def start(self, tell: Callable[[Report], None], lose: Callable[[PunaError], None]) -> None:
        """Starts the thread. Reports come to `tell`, and a fault of the loop itself to `lose`, in this event loop."""
        loop = asyncio.get_running_loop()

        def in_loop(act: Callable[..., None], *values: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody listens any more
                loop.call_soon_threadsafe(act, *values)

        def work() -> None:
            try:
                run(self._assistant, self._take, partial(in_loop, tell), self._events_per_second)
            except Exception as error:
                _log.exception("the loop that runs the model has ended")
                in_loop(lose, DeviceError(f"the model does not run any more: {error}"))

        self._thread = threading.Thread(target=work, name="puna-model", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """Passes an order on."""
        self._orders.put(order)

    async def stop(self) -> None:
        """Ends the thread after its current step."""
        self._orders.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _take(self, waits: bool) -> list[Order] | None:
        come = [self._orders.get()] if waits else []
        with contextlib.suppress(queue.Empty):
            while True:
                come.append(self._orders.get_nowait())
        orders = [order for order in come if order is not None]
        return orders if len(orders) == len(come) else None


class _Stepping:
    """A session of the model, and whom its answers belong to."""

    def __init__(self, assistant: Assistant, events_per_second: float) -> None:
        self._assistant = assistant
        self._events_per_second = events_per_second
        assistant.engine.counts_routes = True
        self._n_made = 0  # of the session's tokens, those that were reported
        self._open_session()
        self._owners: dict[int, int] = {}  # the session's numbers of what goes on -> those of the orders
        self._open: dict[int, tuple[int, set[int]]] = {}  # the other way, with the samples that go on
        self._unbegun: set[int] = set()  # of the session's numbers
        self._settled: list[Settled] = []
        self._next_look = 0.0  # when the engine is looked at again, on the monotonic clock

    @property
    def is_idle(self) -> bool:
        return self._session.is_idle

    def obey(self, order: Order) -> None:
        """Does what does not take a step. The next report says how it went."""
        try:
            match order:
                case Begin():
                    self._begin(order)
                    return
                case End(number, sample):
                    self._end(number, sample)
                    return
                case Score(number, prompt, n, adapter):
                    settled = Settled(number, expected=self._assistant.prompt_logprobs(prompt, n, adapter))
                case Count(number):
                    settled = Settled(number, counts=self._assistant.engine.route_counts.totals())
        except Exception as error:  # belongs to whoever gave the order
            settled = Settled(order.number, Problem.of(error))
        self._settled.append(settled)

    def step(self) -> Report:
        """Runs the model once."""
        try:
            pieces = self._session.step(self._pace.due)
        except Exception as error:  # whatever the model stumbles over must not end the server
            _log.exception("a step of the model failed; all answers in progress end")
            failed = list(self._open)
            self._open_session()
            for kept in (self._owners, self._open, self._unbegun):
                kept.clear()
            return self.report(failed=failed, problem=Problem.of(error))
        looks = self._is_time_to_look()
        begun = self._begun({mine for mine, _ in pieces}, looks)
        told = [(self._owner(mine, piece), piece) for mine, piece in pieces]
        return self.report(looks, begun=begun, pieces=told)

    def report(
        self,
        looks: bool = True,
        *,
        pieces: list[tuple[int, Piece]] | None = None,
        begun: list[int] | None = None,
        failed: list[int] | None = None,
        problem: Problem | None = None,
    ) -> Report:
        """Returns what is to be told, with what was settled meanwhile, and what the engine holds where it `looks`."""
        settled, self._settled = self._settled, []
        n_new, self._n_made = self._session.n_made - self._n_made, self._session.n_made
        held = self._held() if looks else None
        return Report(held, n_new, pieces or [], begun or [], settled, failed or [], problem)

    def _open_session(self) -> None:
        self._session = self._assistant.session()
        self._pace = Pace(self._events_per_second)
        self._n_made = 0

    def _begin(self, order: Begin) -> None:
        mine = self._session.begin(order.prompt, joins=order.joins, **order.options)
        self._owners[mine] = order.number
        self._open[order.number] = mine, set(range(order.options.get("n", 1)))
        self._unbegun.add(mine)
        if order.is_whole:
            self._pace.wait(mine)

    def _end(self, number: int, sample: int | None) -> None:
        if number not in self._open:  # it has ended, or never began
            return
        mine, unfinished = self._open[number]
        dropped = set(unfinished) if sample is None else {sample}
        unfinished -= dropped
        for each in dropped:
            self._pace.end(mine, each)
        if not unfinished:
            self._forget(mine)
        self._session.end(mine, sample)

    def _owner(self, mine: int, piece: Piece) -> int:
        number = self._owners[mine]
        if piece.finish is not None:
            unfinished = self._open[number][1]
            unfinished.remove(piece.sample)
            self._pace.end(mine, piece.sample)
            if not unfinished:
                self._forget(mine)
        return number

    def _forget(self, mine: int) -> None:
        del self._open[self._owners.pop(mine)]
        self._unbegun.discard(mine)
        self._pace.forget(mine)

    def _is_time_to_look(self) -> bool:
        """Says whether what the engine holds is told with this step: from time to time, and when all have ended."""
        now = time.monotonic()
        if now < self._next_look and not self.is_idle:
            return False
        self._next_look = now + LOOK_SECONDS
        return True

    def _begun(self, heard_of: set[int], looks: bool) -> list[int]:
        """Returns what runs and was not told of. `heard_of` gave a piece; others show where the engine is looked at."""
        begun = self._unbegun & heard_of
        if looks and self._unbegun:
            begun |= self._unbegun.intersection(mine for mine, _ in self._session.running)
        self._unbegun -= begun
        return [self._owners[mine] for mine in begun]

    def _held(self) -> Held:
        load = self._assistant.engine.load
        shares = [held / n for held, n in zip(load.n_held_blocks, load.n_blocks, strict=True) if n]
        return Held(
            n_running=load.n_running,
            n_waiting=load.n_waiting,
            kv_use=max(shares, default=0.0),
            n_prompt_tokens=load.n_prompt_tokens,
            n_cached_tokens=load.n_cached_tokens,
            n_preempted=load.n_preempted,
            n_drafted=load.n_drafted,
            n_accepted=load.n_accepted,
        )
