"""A request's answers in the making: from what was asked to chunks of its choices, whichever API it came by.

In: a chat or completion request. Out: chunk choices as they come, or whole choices, and usage. Other APIs turn their
requests into a `ChatRequest` and these chunks into their own events, so all of them mean the same.
Not here: HTTP, what fields mean (`convert`), what a chunk looks like (`stream`), running (`worker`).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from puna.chat import Options, Piece
from puna.serve import convert, schema, stream
from puna.serve.convert import Job
from puna.serve.options import rule_of
from puna.serve.pictures import Fetch, addresses, refuse_fetching
from puna.serve.refusal import Refusal
from puna.serve.screen import Conversations, Open, Pieces, Screen
from puna.serve.state import State, new_id
from puna.serve.worker import Answers

Chunk = TypeVar("Chunk", bound=schema.ChatChunkChoice | schema.CompletionChoice)
Choice = TypeVar("Choice", bound=schema.ChatChoice | schema.CompletionChoice)

LIGHT_CHARS = 2000
"""Text of a chat that is turned into ids at once, between events: that takes a fraction of a millisecond."""

_Push = Callable[..., Chunk | None]  # of one or more pieces of a sample


class Making(Generic[Chunk, Choice]):
    """The answers to one request. Take either `chunks` or `whole`, once; then `usage` counts everything."""

    def __init__(
        self,
        jobs: Sequence[Job],
        answers: Answers,
        pieces: AsyncIterator[Pieces],
        first: Sequence[Chunk],
        push: Sequence[Sequence[_Push[Chunk]]],
        join: Callable[[Sequence[Chunk]], Choice],
        deadline: float,
    ) -> None:
        self.jobs = jobs
        self._deadline = deadline
        self._answers = answers
        self._pieces = pieces
        self._first = list(first)
        self._push = push  # by prompt and sample
        self._join = join
        self._completion_tokens = 0
        self._cached_tokens: dict[int, int] = {}  # by prompt

    async def chunks(self) -> AsyncIterator[list[Chunk]]:
        """Yields what is new, each choice's chunks in order; the last one has its finish.

        Raises what is wrong with the request, or goes wrong with its answers.
        """
        first = self._first
        open_samples = {(index, sample) for index, job in enumerate(self.jobs) for sample in range(job.n)}
        while open_samples:
            come: dict[tuple[int, int], list[Piece]] = {}
            pieces = await anext(self._pieces)
            if first:  # with the first that follows, so that both are sent together
                yield first
                first = []
            for index, piece in pieces:
                key = index, piece.sample
                if key not in open_samples:  # a screen ended it
                    continue
                self._completion_tokens += piece.n_tokens
                self._cached_tokens[index] = max(piece.n_cached, self._cached_tokens.get(index, 0))
                if piece.finish == "abort":
                    raise _aborted(is_late=time.monotonic() >= self._deadline)
                come.setdefault(key, []).append(piece)
                if piece.finish is not None:
                    open_samples.remove(key)
                    self._answers.end(index, piece.sample)
            made = [self._push[index][sample](*of_sample) for (index, sample), of_sample in come.items()]
            if chunks := [chunk for chunk in made if chunk is not None]:
                yield chunks
        if first:  # nothing was wanted but what is there
            yield first

    async def whole(self) -> list[Choice]:
        """Waits for all answers and returns the choices in order, each joined from its chunks."""
        of_choice: dict[int, list[Chunk]] = {}
        async for chunks in self.chunks():
            for chunk in chunks:
                of_choice.setdefault(chunk.index, []).append(chunk)
        return [self._join(of_choice[index]) for index in sorted(of_choice)]

    def usage(self) -> schema.Usage:
        """Returns the counts so far."""
        prompt_tokens = sum(len(job.prompt.ids) for job in self.jobs)
        return stream.usage(prompt_tokens, self._completion_tokens, sum(self._cached_tokens.values()))


ChatMaking = Making[schema.ChatChunkChoice, schema.ChatChoice]
CompletionMaking = Making[schema.CompletionChoice, schema.CompletionChoice]


@contextlib.asynccontextmanager
async def chat(state: State, asked: schema.ChatRequest) -> AsyncIterator[ChatMaking]:
    """Gives the answers to a chat request; leaving drops what has not ended.

    Raises Refusal, PromptError or CapacityError before anything is made; what only the model can judge, as the first
    of its chunks.
    """
    limits, tokenizer = state.settings.limits, state.prompter.tokenizer
    with state.worker.place(convert.n_choices(asked, limits)):
        job = _adapted(state, await _chat_job(state, asked, convert.chat_job), asked.model)
        screen = _screen(state, [job.messages])
        growing = [
            stream.GrowingChat(
                sample,
                tokenizer,
                job.tools,
                most_calls=1 if asked.parallel_tool_calls is False else None,
                new_call_id=lambda: new_id("call_"),
                results=partial(screen.results, 0, sample),
                wants_ids=bool(asked.return_token_ids),
                routing=_routing(state),
            )
            for sample in range(job.n)
        ]
        async with _making(state, asked, [job], screen) as (answers, pieces, deadline):
            first = [each.open() for each in growing]
            push = [[each.push for each in growing]]
            yield Making([job], answers, pieces, first, push, stream.whole_chat, deadline)
        if n_misread := sum(each.n_misread for each in growing):
            state.metrics.misread_calls.inc(n_misread)


@contextlib.asynccontextmanager
async def completion(state: State, asked: schema.CompletionRequest) -> AsyncIterator[CompletionMaking]:
    """Gives the continuations of one or more prompts, as `chat` does."""
    limits, tokenizer = state.settings.limits, state.prompter.tokenizer
    with state.worker.place(convert.n_choices(asked, limits)):
        async with state.converting:
            converted = await asyncio.to_thread(convert.completion_jobs, state.prompter, asked, limits)
        jobs = [_adapted(state, job, asked.model) for job in converted]
        n = 1 if asked.n is None else asked.n
        screen = _screen(state, [job.messages for job in jobs])
        growing = [
            [
                stream.GrowingCompletion(
                    index * n + sample,
                    tokenizer,
                    wants_logprobs=asked.logprobs is not None,
                    results=partial(screen.results, index, sample),
                    prompt_ids=job.prompt.ids if asked.return_token_ids else None,
                    routing=_routing(state),
                )
                for sample in range(n)
            ]
            for index, job in enumerate(jobs)
        ]
        first = [each for job, row in zip(jobs, growing, strict=True) for each in await _echoes(state, asked, job, row)]
        async with _making(state, asked, jobs, screen) as (answers, pieces, deadline):
            push = [[each.push for each in row] for row in growing]
            yield Making(jobs, answers, pieces, first, push, stream.whole_completion, deadline)


async def prompt_len(state: State, asked: schema.ChatRequest) -> int:
    """Returns how many tokens the prompt of a chat request has, also where the context is too small for it."""
    return len((await _chat_job(state, asked, convert.unchecked_chat_job)).prompt.ids)


async def _chat_job(state: State, asked: schema.ChatRequest, convert_chat: Callable[..., Job]) -> Job:
    if _is_light(state, asked):
        return convert_chat(state.prompter, asked, state.settings.limits)
    fetch = await _fetched(state, asked)
    async with state.converting:
        chat_job = partial(convert_chat, prepare=state.prepare, fetch=fetch)
        return await asyncio.to_thread(chat_job, state.prompter, asked, state.settings.limits)


def _adapted(state: State, job: Job, model: str | None) -> Job:
    """Returns the job as the model that the request names does it: the base, or an adapter over it."""
    return job._replace(options={**job.options, "adapter": model}) if model in state.settings.adapters else job


def _is_light(state: State, asked: schema.ChatRequest) -> bool:
    """Says whether a request becomes a prompt sooner than another thread would have begun with it: a short text."""
    contents: list[Any] = [message.get("content") for message in asked.messages]
    is_text = all(isinstance(content, str) for content in contents)
    is_free = not asked.tools and rule_of(asked, state.settings.limits) is None
    return is_text and is_free and state.settings.screen is None and sum(map(len, contents)) <= LIGHT_CHARS


async def _fetched(state: State, asked: schema.ChatRequest) -> Fetch:
    """Gets the pictures that lie elsewhere, where that is allowed. Returns how to get at them."""
    fetcher, wanted = state.fetcher, addresses(asked.messages)
    if fetcher is None or not 0 < len(wanted) <= state.settings.limits.max_images:
        return refuse_fetching
    async with state.fetching:
        fetched = await asyncio.gather(*(asyncio.to_thread(fetcher.fetch, *each) for each in wanted.items()))
    bodies = dict(zip(wanted, fetched, strict=True))
    return lambda url, where: bodies[url] if url in bodies else refuse_fetching(url, where)


async def _echoes(
    state: State, asked: schema.CompletionRequest, job: Job, growing: Sequence[stream.GrowingCompletion]
) -> list[schema.CompletionChoice]:
    """Returns the first chunk of each choice of a prompt: the prompt itself, where that is wanted."""
    if not asked.echo:
        return []
    wanted = asked.logprobs is not None
    adapter, n_top = job.options.get("adapter"), asked.logprobs or 0
    expected = await state.worker.prompt_logprobs(job.prompt, n_top, adapter) if wanted else []
    finish = None if job.n else "length"
    return [each.echo(job.text, job.prompt.ids, expected, finish) for each in growing]


@contextlib.asynccontextmanager
async def _making(
    state: State, asked: schema.MakingRequest, jobs: Sequence[Job], screen: Screen
) -> AsyncIterator[tuple[Answers, AsyncIterator[Pieces], float]]:
    """Has the model answer all jobs that want an answer. Gives the pieces that a client may see, and until when."""
    seconds = state.settings.request_seconds
    limit, deadline = Options(deadline_seconds=seconds), math.inf if seconds is None else time.monotonic() + seconds
    prompts = [(job.prompt, Options(**job.options, **limit)) for job in jobs if job.n]
    is_open = state.settings.screen is None  # others look at each token as it comes
    wants_each = asked.return_token_ids or any({"logprobs", "wants_routes"} & job.options.keys() for job in jobs)
    told = {"joins": is_open and not wants_each, "is_whole": is_open and not asked.stream}
    async with state.worker.answer(prompts, **told) as answers:
        made = answers.pieces()
        shown = screen.watch(made)
        try:
            yield answers, shown, deadline
        finally:
            for pieces in (shown, made):
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()


def _aborted(*, is_late: bool) -> Refusal:
    """Returns what is said of an answer that the engine ended: its time was up, or nothing could come next."""
    if not is_late:
        problem = "what the answer must look like leads nowhere: there is no token that may come next; allow more"
        return Refusal(400, problem, code="no_token_fits")
    problem = "the answer was ended: it took longer than this server allows"
    return Refusal(504, problem, code="aborted", kind="server_error", headers={"X-Should-Retry": "false"})


def _routing(state: State) -> stream.Routing:
    text = state.prompter.config.text
    return stream.Routing(sorted(text.moe_layers), text.n_experts if text.moe_layers else 0)


def _screen(state: State, conversations: Conversations) -> Screen:
    make = state.settings.screen
    return Open() if make is None else make(conversations)
