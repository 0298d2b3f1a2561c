"""Requests on their way to the model and back, in the event loop.

In: prompts with options. Out: pieces of their answers as they are made, and everything that is counted on the way. A
request that reads more slowly than the model writes gets what has come meanwhile at once; nobody waits on purpose.
Not here: running the model (`stepping`), HTTP, what prompts and pieces mean.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

from puna.chat import Options, Piece
from puna.engine.request import TokenLogprobs
from puna.errors import CapacityError, DeviceError, PunaError
from puna.meter import meters
from puna.prompt.render import Prompt
from puna.serve.load import Held, Load
from puna.serve.metrics import Metrics
from puna.serve.orders import Begin, Count, End, Order, Problem, Report, Score, Settled

COUNT_SECONDS = 1.0
"""How long a look at the experts' counts waits for the end of a step; then it has those of the last look."""


class FullError(CapacityError):
    """There is no room now, and there will be: come back."""


class Stepper(Protocol):
    """Whoever runs the model: in a thread, or in another process."""

    tells_routes: bool

    @property
    def is_alive(self) -> bool: ...

    async def start(self, tell: Callable[[Report], None], lose: Callable[[PunaError], None]) -> None:
        """Begins to run. Reports come to `tell`, and what ends it against all plans to `lose`, in this event loop."""
        ...

    def order(self, order: Order) -> None:
        """Passes an order on; orders are obeyed in turn."""
        ...

    async def stop(self) -> None:
        """Returns when nothing runs any more. What has not ended by then never does."""
        ...


class _Growing:
    """The answers to one prompt while they are made. `index` is its place among the prompts of its request."""

    def __init__(self, order: Begin, index: int, began: float, answers: "Answers") -> None:
        tiles = order.prompt.tiles
        self.number = order.number
        self.n_read = len(order.prompt.ids)
        self.n_tiles = 0 if tiles is None else len(tiles)
        self.index = index
        self.began = began
        self.first_step: float | None = None  # when it was running after a step for the first time
        self.first_token: float | None = None
        self.answers = answers
        self.unfinished = set(range(order.options.get("n", 1)))  # samples
        self.n_tokens = 0
        self.last_seconds: dict[int, float] = {}  # when each sample's last token arrived


class Answers:
    """The answers to all prompts of one request: `next` gives what has come."""

    def __init__(self, drop: Callable[[_Growing, int], None]) -> None:
        self._drop = drop
        self.growing: list[_Growing] = []
        self._come: list[tuple[int, Piece]] = []
        self._failure: Exception | None = None
        self._is_ready = asyncio.Event()

    async def pieces(self) -> AsyncGenerator[list[tuple[int, Piece]]]:
        """Yields what has come, as `next`, until everything is over."""
        while not self.is_over:
            yield await self.next()

    @property
    def is_over(self) -> bool:
        """Says whether everything has come and been taken."""
        is_taken = not self._come and self._failure is None
        return is_taken and not any(growing.unfinished for growing in self.growing)

    def end(self, index: int, sample: int) -> None:
        """Drops one sample of prompt `index` if it goes on. Pieces of it that have come may still be taken."""
        growing = self.growing[index]
        if sample in growing.unfinished:
            growing.unfinished.remove(sample)
            self._drop(growing, sample)

    async def next(self) -> list[tuple[int, Piece]]:
        """Waits for pieces. Returns all that are there, each with the index of its prompt.

        Raises what the model stumbled over. May be cancelled without loss.
        """
        await self._is_ready.wait()
        self._is_ready.clear()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        come, self._come = self._come, []
        return come

    def put(self, index: int, piece: Piece) -> None:
        """Adds a piece for `next`."""
        self._come.append((index, piece))
        self._is_ready.set()

    def fail(self, error: Exception) -> None:
        """Has `next` raise an error."""
        self._failure = error
        self._is_ready.set()


class Worker:
    """Has a model answer everybody. `max_open` bounds the samples that are in progress or waiting.

    `layers` are the numbers of those with experts. For the event loop that called `start`.
    """

    def __init__(
        self,
        stepper: Stepper,
        metrics: Metrics,
        *,
        layers: Sequence[int],
        max_open: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stepper = stepper
        self._metrics = metrics
        self._max_open = max_open
        self._clock = clock
        self._n_open = 0
        self.held = Held.nothing()  # at the last look
        self._numbers = itertools.count()
        self._growing: dict[int, _Growing] = {}  # by number of its order
        self._asked: dict[int, asyncio.Future[Settled]] = {}  # by number
        self._counts: list[list[int]] = [[] for _ in layers]  # at the last look
        metrics.add(Load(metrics.model, metrics.prefix, lambda: self.held, lambda: self._counts, layers, meters()))

    @property
    def is_alive(self) -> bool:
        return self._stepper.is_alive

    @property
    def tells_routes(self) -> bool:
        """Whether an answer may have the experts that made it."""
        return self._stepper.tells_routes

    @property
    def n_open(self) -> int:
        """Samples that hold a place."""
        return self._n_open

    async def start(self) -> None:
        """Begins. Call it once, within the event loop that will ask."""
        await self._stepper.start(self._take, self._lose)

    async def stop(self) -> None:
        """Ends after the current step; what has not ended by then never does."""
        await self._stepper.stop()

    @contextlib.contextmanager
    def place(self, n: int) -> Iterator[None]:
        """Holds room for `n` samples. Raises FullError when there is none."""
        if self._n_open + n > self._max_open:
            self._metrics.rejected.inc()
            raise FullError(f"{self._n_open} answers are in progress of at most {self._max_open}: try again soon")
        self._n_open += n
        try:
            yield
        finally:
            self._n_open -= n

    @contextlib.asynccontextmanager
    async def answer(
        self, prompts: Sequence[tuple[Prompt, Options]], *, joins: bool = False, is_whole: bool = False
    ) -> AsyncIterator[Answers]:
        """Gives the answers to prompts in progress; leaving drops what has not ended.

        With `joins`, tokens that come together are one piece, without the ids of all; with `is_whole` all come at the
        end, but the first. What is wrong with a prompt is raised by `Answers.next`.
        """
        answers = Answers(self._drop)
        try:
            for index, (prompt, options) in enumerate(prompts):
                self._begin(Begin(next(self._numbers), prompt, options, joins, is_whole), index, answers)
            yield answers
        finally:
            for growing in answers.growing:
                for _ in growing.unfinished:
                    self._metrics.finish("abort")
                if growing.unfinished:
                    self._drop(growing)
                self._growing.pop(growing.number, None)

    async def expert_counts(self) -> list[list[int]]:
        """Returns how many tokens each expert of each layer with experts took, as far as the model's runner tells."""
        settling = asyncio.ensure_future(self._settled(Count(next(self._numbers))))
        done, _ = await asyncio.wait((settling,), timeout=COUNT_SECONDS)
        if done and settling.exception() is None:
            self._counts = settling.result().counts or self._counts
        settling.cancel()
        return self._counts

    async def prompt_logprobs(self, prompt: Prompt, n: int, adapter: str | None = None) -> list[TokenLogprobs]:
        """Returns `Assistant.prompt_logprobs`, computed between two steps."""
        return (await self._settled(Score(next(self._numbers), prompt, n, adapter))).expected or []

    def _begin(self, order: Begin, index: int, answers: Answers) -> None:
        self._require_alive()
        growing = _Growing(order, index, self._clock(), answers)
        self._growing[order.number] = growing
        answers.growing.append(growing)
        self._stepper.order(order)

    async def _settled(self, order: Order) -> Settled:
        """Gives an order and returns how it ended. Raises what went wrong."""
        self._require_alive()
        future: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._asked[order.number] = future
        self._stepper.order(order)
        try:
            return await future
        finally:
            del self._asked[order.number]

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise DeviceError("the model does not run any more")

    def _drop(self, growing: _Growing, sample: int | None = None) -> None:
        """Has what goes on of one prompt's answers ended: all samples, or one."""
        self._stepper.order(End(growing.number, sample))

    # What is told -----------------------------------------------------------------------------------------------------

    def _take(self, report: Report) -> None:
        now = self._clock()
        self.held = self.held if report.held is None else report.held
        for settled in report.settled:
            self._settle(settled)
        for number in report.begun:
            if (growing := self._growing.get(number)) is not None:
                growing.first_step = now
                self._count_prompt(growing)
                self._metrics.queued.observe(now - growing.began)
        pauses = Counter[float]()
        for number, piece in report.pieces:
            growing = self._growing.get(number)
            if growing is None:  # its client left while this was on its way
                continue
            if n_tokens := piece.n_tokens:
                self._count_tokens(growing, piece.sample, n_tokens, now, pauses)
            if piece.finish is not None:
                growing.unfinished.discard(piece.sample)
                self._finish(growing, piece.finish, now)
            growing.answers.put(growing.index, piece)
        if report.n_made:
            self._metrics.generation_tokens.inc(report.n_made)
        for pause, n in pauses.items():
            self._metrics.inter_token.observe(pause, n)
        if report.problem is not None:
            self._fail([growing for number in report.failed if (growing := self._growing.get(number))], report.problem)

    def _settle(self, settled: Settled) -> None:
        """Completes an order, unless whoever gave it has gone. A prompt that is settled is refused."""
        growing, future = self._growing.get(settled.number), self._asked.get(settled.number)
        if growing is not None and settled.problem is not None:
            growing.unfinished.clear()
            growing.answers.fail(settled.problem.error())
        if future is None or future.done():
            return
        if settled.problem is None:
            future.set_result(settled)
        else:
            future.set_exception(settled.problem.error())

    def _count_prompt(self, growing: _Growing) -> None:
        self._metrics.prompt_tokens.inc(growing.n_read)
        self._metrics.prompt_lens.observe(growing.n_read)
        self._metrics.image_tiles.inc(growing.n_tiles)

    def _count_tokens(self, growing: _Growing, sample: int, n_tokens: int, now: float, pauses: Counter[float]) -> None:
        """Counts tokens that came together: the time since those before them is that of all of them."""
        if growing.first_token is None:
            growing.first_token = now
            self._metrics.first_token.observe(now - growing.began)
            if growing.first_step is not None:
                self._metrics.prefill.observe(now - growing.first_step)
        if sample in growing.last_seconds:
            pauses[(now - growing.last_seconds[sample]) / n_tokens] += n_tokens
        growing.last_seconds[sample] = now
        growing.n_tokens += n_tokens

    def _finish(self, growing: _Growing, reason: str, now: float) -> None:
        self._metrics.finish(reason)
        if growing.unfinished:
            return
        self._metrics.whole.observe(now - growing.began)
        if growing.first_token is not None:
            self._metrics.decode.observe(now - growing.first_token)
        self._metrics.answer_lens.observe(growing.n_tokens)

    def _lose(self, error: PunaError) -> None:
        """Ends everything: nothing runs the model any more."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
        self._fail(list(self._growing.values()), Problem.of(error))

    def _fail(self, failed: Sequence[_Growing], problem: Problem) -> None:
        self._metrics.failures.inc()
        for growing in failed:
            growing.unfinished.clear()
            growing.answers.fail(problem.error())
