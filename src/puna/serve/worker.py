"""The one thread that runs the model, for all requests together, and how the event loop talks to it.

In: prompts with options, from the event loop. Out: pieces of their answers as they are made. Between two steps of the
model the thread takes new requests in and drops those whose clients left, so nobody waits longer than one step for
either. Prompts whose log-probabilities are wanted are read in the same thread: a model runs one thing at a time.
Not here: HTTP, what prompts and pieces mean.

A step that fails ends every answer in progress, since their caches are unusable then; the thread goes on with a new
session.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from puna.chat import Assistant, Options, Piece, Session
from puna.engine.request import TokenLogprobs
from puna.errors import CapacityError, PunaError
from puna.meter import meters
from puna.prompt.render import Prompt
from puna.serve.load import Held, Load
from puna.serve.metrics import Metrics

PAUSE_SECONDS = 0.001
"""Between two deliveries to one request, for each answer that is being made: with many clients each gets several tokens
at once, since waking and writing cost far more than what is written. A lone client gets every token by itself."""

_log = logging.getLogger("puna.serve")


class FullError(CapacityError):
    """There is no room now, and there will be: come back."""


class _Growing:
    """The answers to one prompt while they are made. `index` is its place among the prompts of its request."""

    def __init__(self, index: int, n: int, began: float, answers: "Answers") -> None:
        self.index = index
        self.began = began
        self.first_step: float | None = None  # when it was running after a step for the first time
        self.first_token: float | None = None
        self.answers = answers
        self.unfinished = set(range(n))  # samples
        self.n_tokens = 0
        self.last_seconds: dict[int, float] = {}  # when each sample's last token arrived


class Answers:
    """The answers to all prompts of one request, as the event loop sees them: `next` gives what has come."""

    def __init__(self, drop: Callable[[_Growing, int], None]) -> None:
        self._drop = drop
        self.growing: list[_Growing] = []
        self._come: list[tuple[int, Piece]] = []
        self._failure: Exception | None = None
        self._due_seconds = 0.0  # when what has come is handed on, unless it ends an answer
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
        """Adds a piece, for `hand_on`. At once where it ends an answer."""
        self._come.append((index, piece))
        if piece.finish is not None:
            self._is_ready.set()

    def hand_on(self, now: float, pause_seconds: float) -> bool:
        """Lets `next` have what has come, unless it had something less than a pause ago. Says whether it may."""
        if now >= self._due_seconds:
            self._is_ready.set()
        if self._is_ready.is_set():
            self._due_seconds = now + pause_seconds
            return True
        return False

    def fail(self, error: Exception) -> None:
        """Has `next` raise an error."""
        self._failure = error
        self._is_ready.set()


class _Command(NamedTuple):
    """Something for the thread to do between steps, and where its result goes."""

    act: Callable[[Session], Any]
    result: asyncio.Future[Any]


class Worker:
    """Runs an assistant for everybody. `max_open` bounds the samples that are in progress or waiting.

    Public methods belong to the event loop that called `start`; the assistant's model belongs to the thread.
    """

    def __init__(
        self, assistant: Assistant, metrics: Metrics, *, max_open: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._assistant = assistant
        self._metrics = metrics
        self._max_open = max_open
        self._clock = clock
        self._n_open = 0
        self.n_running = 0  # samples that the model works on, and those that wait: counted by the thread
        self.n_waiting = 0
        self.load = assistant.engine.load  # what the engine held after its last step
        assistant.engine.counts_routes = True
        self._session = assistant.session()
        self._growing: dict[int, tuple[_Growing, set[int]]] = {}  # the thread's, with the samples that go on
        self._unheard: dict[Answers, None] = {}  # the event loop's: those with pieces that nobody was woken for
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="puna-model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unbegun: set[int] = set()  # the thread's: what has not run yet
        layers, counts = sorted(assistant.config.text.moe_layers), assistant.engine.route_counts.totals
        metrics.add(Load(metrics.model, metrics.prefix, self._held, counts, layers, meters()))

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def n_open(self) -> int:
        """Samples that hold a place."""
        return self._n_open

    def start(self) -> None:
        """Starts the thread. Call it once, within the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; what has not ended by then never does."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

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
    async def answer(self, prompts: Sequence[tuple[Prompt, Options]]) -> AsyncIterator[Answers]:
        """Gives the answers to prompts in progress; leaving drops what has not ended.

        Raises PromptError or CapacityError at once, also for what only the model can judge.
        """
        answers = Answers(self._drop)
        try:
            for index, (prompt, options) in enumerate(prompts):
                await self._begin(_Growing(index, options.get("n", 1), self._clock(), answers), prompt, options)
            yield answers
        finally:
            for growing in answers.growing:
                for _ in growing.unfinished:
                    self._metrics.finish("abort")
                if growing.unfinished:
                    self._drop(growing)

    async def _begin(self, growing: _Growing, prompt: Prompt, options: Options) -> None:
        def begin(session: Session) -> None:
            number = session.begin(prompt, **options)
            self._growing[number] = growing, set(growing.unfinished)
            self._unbegun.add(number)

        growing.answers.growing.append(growing)  # at once, so that it is dropped even if the client leaves meanwhile
        try:
            await self._order(begin)
        except PunaError:
            growing.unfinished.clear()
            raise
        self._metrics.prompt_tokens.inc(len(prompt.ids))
        self._metrics.prompt_lens.observe(len(prompt.ids))
        self._metrics.image_tiles.inc(0 if prompt.tiles is None else len(prompt.tiles))

    def _held(self) -> Held:
        load = self.load
        shares = [held / n for held, n in zip(load.n_held_blocks, load.n_blocks, strict=True) if n]
        return Held(
            n_running=self.n_running,
            n_waiting=self.n_waiting,
            kv_use=max(shares, default=0.0),
            n_prompt_tokens=load.n_prompt_tokens,
            n_cached_tokens=load.n_cached_tokens,
            n_preempted=load.n_preempted,
            n_drafted=load.n_drafted,
            n_accepted=load.n_accepted,
        )

    def expert_counts(self) -> list[list[int]]:
        """Returns how many tokens each expert of each layer with experts took, where the model's runner tells."""
        return self._assistant.engine.route_counts.totals()

    async def prompt_logprobs(self, prompt: Prompt, n: int) -> list[TokenLogprobs]:
        """Returns `Assistant.prompt_logprobs`, computed by the model's thread between two steps."""
        expected: list[TokenLogprobs] = await self._order(lambda _: self._assistant.prompt_logprobs(prompt, n))
        return expected

    def _order(self, act: Callable[[Session], Any]) -> asyncio.Future[Any]:
        assert self._loop is not None, "started"
        command = _Command(act, self._loop.create_future())
        self._commands.put(command)
        return command.result

    def _drop(self, growing: _Growing, sample: int | None = None) -> None:
        """Has the thread end what goes on of one prompt's answers: all samples, or one."""

        def drop(session: Session) -> None:
            for number in [number for number, (known, _) in self._growing.items() if known is growing]:
                _, unfinished = self._growing[number]
                unfinished -= set(unfinished) if sample is None else {sample}
                if not unfinished:
                    del self._growing[number]
                session.end(number, sample)

        self._order(drop)

    # In the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            # Waits only while there is nothing to compute; otherwise takes what has come in, and computes.
            while self._session.is_idle or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                self._obey(command)
                self._count()
            try:
                pieces = self._session.step()
            except Exception as error:  # whatever the model stumbles over must not end the server
                _log.exception("a step of the model failed; all answers in progress end")
                self._tell(self._fail, [growing for growing, _ in self._growing.values()], error)
                self._growing.clear()
                self._unbegun.clear()
                self._session = self._assistant.session()
            else:
                begun = self._begun({number for number, _ in pieces})
                self._tell(self._deliver, begun, [(self._owner(number, piece), piece) for number, piece in pieces])
            self._count()

    def _begun(self, heard_of: set[int]) -> list[_Growing]:
        """Returns what has run in this step for the first time. `heard_of` are those that gave a piece."""
        if not self._unbegun:
            return []
        running = heard_of | {number for number, _ in self._session.running}
        begun = [self._growing[number][0] for number in self._unbegun & running & self._growing.keys()]
        self._unbegun -= running
        self._unbegun &= self._growing.keys()
        return begun

    def _count(self) -> None:
        self.n_running, self.n_waiting = self._session.n_running, self._session.n_waiting
        self.load = self._assistant.engine.load

    def _obey(self, command: _Command) -> None:
        if command.result.cancelled():
            return
        try:
            result, error = command.act(self._session), None
        except Exception as raised:  # belongs to whoever gave the order
            result, error = None, raised
        self._tell(_settle, command.result, result, error)

    def _owner(self, number: int, piece: Piece) -> _Growing:
        growing, unfinished = self._growing[number]
        if piece.finish is not None:
            unfinished.remove(piece.sample)
            if not unfinished:
                del self._growing[number]
        return growing

    def _tell(self, act: Callable[..., None], *values: Any) -> None:
        assert self._loop is not None, "started"
        with contextlib.suppress(RuntimeError):  # the loop was closed, so nobody listens any more
            self._loop.call_soon_threadsafe(act, *values)

    # Back in the event loop -------------------------------------------------------------------------------------------

    def _deliver(self, begun: list[_Growing], pieces: list[tuple[_Growing, Piece]]) -> None:
        now = self._clock()
        for growing in begun:
            growing.first_step = now
            self._metrics.queued.observe(now - growing.began)
        self._metrics.generation_tokens.inc(sum(piece.token is not None for _, piece in pieces))
        for growing, piece in pieces:
            if piece.token is not None:
                self._count_token(growing, piece.sample, now)
            if piece.finish is not None:
                growing.unfinished.discard(piece.sample)
                self._metrics.finish(piece.finish)
                if not growing.unfinished:
                    self._metrics.whole.observe(now - growing.began)
                    if growing.first_token is not None:
                        self._metrics.decode.observe(now - growing.first_token)
                    self._metrics.answer_lens.observe(growing.n_tokens)
            growing.answers.put(growing.index, piece)
            self._unheard[growing.answers] = None
        pause_seconds = PAUSE_SECONDS * self.n_running
        for answers in [answers for answers in self._unheard if answers.hand_on(now, pause_seconds)]:
            del self._unheard[answers]

    def _count_token(self, growing: _Growing, sample: int, now: float) -> None:
        if growing.first_token is None:
            growing.first_token = now
            self._metrics.first_token.observe(now - growing.began)
            if growing.first_step is not None:
                self._metrics.prefill.observe(now - growing.first_step)
        if sample in growing.last_seconds:
            self._metrics.inter_token.observe(now - growing.last_seconds[sample])
        growing.last_seconds[sample] = now
        growing.n_tokens += 1

    def _fail(self, failed: list[_Growing], error: Exception) -> None:
        self._metrics.failures.inc()
        for growing in failed:
            growing.unfinished.clear()
            growing.answers.fail(error)


def _settle(result: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    """Completes an order, unless whoever gave it has gone."""
    if result.cancelled():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
