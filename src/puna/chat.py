"""An assistant: a model, its tokenizer, and the way from messages to ids and back. Everything above talks to this.

In: messages in OpenAI's shape, pictures, options. Out: messages and text, whole or as they grow, with finish reasons,
usage and log-probabilities for those who ask. Every prompt is checked against model and context before anything runs.
Not here: files (`weights`), the protections (`guard`), HTTP (`serve`), threads: a `Session` decodes many answers
together, and whoever has several users steps it in one thread.
"""

import atexit
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from puna import __version__, parallel
from puna.adapters.shelf import Shelf
from puna.config import LlamaConfig
from puna.engine import cache as kv
from puna.engine import ranks
from puna.engine.blocks import Spill
from puna.engine.engine import MAX_SEQUENCES, Engine, score
from puna.engine.grammar import Grammar, Matcher, Vocabulary, json_schema, lark, regex
from puna.engine.grammar import choice as one_of
from puna.engine.request import Event, Finish, Request, Sampling, TokenLogprobs
from puna.engine.routes import Routes
from puna.engine.runner import TorchRunner
from puna.engine.shared import Share, SharedEngine
from puna.engine.speculate import DraftModel, Lookup, Proposer
from puna.engine.spill import FileSpill, MemorySpill
from puna.errors import ConfigError, DeviceError, PromptError
from puna.kernels.formats import stack_of_one
from puna.kernels.low_rank import Factors
from puna.model.count import part_of
from puna.model.transformer import Llama
from puna.offload import attach
from puna.offload.record import Pair
from puna.offload.store import Key
from puna.parallel import Layout
from puna.prompt.detokenize import Detokenizer
from puna.prompt.message import Message, TextPart, Tool
from puna.prompt.parse import parse
from puna.prompt.render import Prompt, Renderer, ToolsIn, ToolStyle
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.tool_grammar import tool_grammar, words_and_calls
from puna.prompt.vocab import PATCH
from puna.quant import ready, swap
from puna.weights import checkpoint, hub, peft
from puna.weights.source import open_source
from puna.weights.stored import Staging

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

GRAMMARS: Mapping[str, Callable[[Any], Grammar]] = {
    "json_schema": json_schema,
    "regex": regex,
    "choice": one_of,
    "grammar": lark,
}
"""The options that say what a text must look like."""

_SAMPLINGS = 256  # settings that are remembered

_ROWS_AT_ONCE = 512  # of logits that become log-probabilities, so that only one copy of all of them is held


class Options(TypedDict, total=False):
    """How an answer is made. `Sampling` documents the numbers and holds their defaults."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    max_new_tokens: int | None
    stop: str | Sequence[str]  # texts that end the answer; they are not part of it
    include_stop: bool  # the text that ended the answer is part of it
    stop_ids: Sequence[int]  # end the answer like the tokenizer's own
    ignore_stop_ids: bool  # the tokenizer's own do not end the answer
    min_new_tokens: int  # before which no id ends the answer
    logit_bias: Mapping[int, float]  # added to the logits of these ids
    allowed_ids: Sequence[int] | None  # nothing else is chosen
    show_special: bool | None  # special tokens in the text: all by name, none, or (None) all but those that end a turn
    wants_routes: bool  # pieces say which experts were chosen
    adapter: str | None  # the name of one that was loaded
    logprobs: int | None  # 0: of the chosen tokens; n: also of the n most probable ones
    n: int  # how many answers to the same prompt
    priority: float  # 0 is ordinary, less comes earlier and more later, within -100..100
    deadline_seconds: float | None  # from now on; once they have passed, the answer ends with finish "abort"
    # What the text must look like; at most one of these. It ends where it is satisfied.
    json_schema: Mapping[str, Any] | str | None  # a JSON document of this schema
    regex: str | None  # matched from beginning to end
    choice: Sequence[str] | None  # one of these
    grammar: str | Grammar | Matcher | None  # in Lark notation, from the rule `start`


class ChatOptions(Options, total=False):
    """Options, and how tools are written: defined in the system or the user turn, called in Python or JSON.

    `tool_choice` is "auto", where the model decides (with `json_schema`, whatever is no call follows that; where a tool
    is strict, calls follow the schemas), "required", or the name of the tool that it must call. `max_calls` bounds the
    calls that a grammar allows. `reply` says what the prompt ends with: "new" opens an answer, "continue" leaves the
    last message open, which is an assistant's, "none" opens nothing.
    """

    tool_style: ToolStyle
    tools_in: ToolsIn
    tool_choice: str
    max_calls: int | None
    reply: Literal["new", "continue", "none"]


Ending = Finish | Literal["content_filter"]
"""Why an answer ended: as the engine says, or because a protection ended it."""


class Piece(NamedTuple):
    """A growing answer's next token and the text that became certain with it, which may be empty or several characters.

    `token` is None where the answer ended without one. The texts of all pieces of a sample, joined, are its answer.
    A session that was told to joins tokens: then a piece also stands for `n_before` that came before `token`.
    """

    sample: int
    text: str
    token: int | None
    logprobs: TokenLogprobs | None
    finish: Ending | None
    n_cached: int = 0  # tokens of the prompt that were remembered and not read again
    stopped: str | None = None  # the stop string that ended it, if one did
    routes: Routes | None = None  # of the position that the token was chosen at, where that is wanted
    n_before: int = 0

    @property
    def n_tokens(self) -> int:
        """How many tokens it stands for."""
        return 0 if self.token is None else 1 + self.n_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished answer. `ids` holds every token made, the stopping one too; `text` neither it nor a stop string."""

    text: str
    message: Message
    ids: tuple[int, ...]
    finish: Ending
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of the prompt, patch tokens included, and made, over all answers.

    `cached_tokens` of the prompt were remembered from before and not read again.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock times from the call on. Reading the prompt ends with the first token."""

    first_token_seconds: float
    total_seconds: float

    def tokens_per_second(self, usage: Usage) -> float:
        """Returns the speed of decoding: of all tokens after the first step."""
        seconds = self.total_seconds - self.first_token_seconds
        return max(usage.completion_tokens - 1, 0) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """All n answers to a prompt, and what they took."""

    answers: tuple[Answer, ...]
    usage: Usage
    timings: Timings


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: swap.Format | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    kv_bytes: int | None = None,
    kv_dtype: str | None = None,
    spill_bytes: int | None = None,
    spill_dir: str | Path | None = None,
    speculate: str | Path | None = None,
    offload: attach.Where | None = None,
    offload_dir: str | Path | None = None,
    expert_cache_bytes: int | None = None,
    layout: Layout | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> "Assistant":
    """Returns an assistant from "cria" (the model that ships), a directory, or a Hugging Face hub id.

    dtype      "float32", "bfloat16", "float16" or None, which keeps the numbers as they are stored, small ones too
    device     any torch device; None takes the first GPU, or the processor where there is none
    quantize   "int4", "int8" or "fp8" makes the decoder's matrices small as they are read (`quant.swap`); dtype is then
               that of everything else. None keeps what is stored
    cache_dir  a folder where a model on the processor is kept as it runs, quantised and packed: the next start with the
               same files and numbers only reads it, routed experts behind the first answers. None keeps nothing
    progress   is called with bytes loaded and bytes in all
    kv_bytes   bounds the memory of keys and values; None takes a share of what the machine has
    kv_dtype   "int8" or "fp8" keeps them in a byte each, "bfloat16", "float16" or "float32" in that; None as the model
    spill_bytes
               keeps that much of the keys and values that had to make room, for texts that begin alike later: in the
               machine's own memory, or in files of the folder `spill_dir`, which go when the program ends. Of several
               ranks the first keeps those of all. None lets them go
    speculate  "lookup" guesses next tokens from the text itself, a directory or hub id has a smaller model guess them,
               None guesses none. Answers are the same, and sooner there where guesses are right
    offload    "disk", or with a GPU also "host": routed experts stay there and are fetched when they are chosen, which
               is slow; a warning says how slow. `offload_dir` takes the copy on disk, made once (None: in the user's
               cache folder); `expert_cache_bytes` is what fetched experts may take (None: half of what is free)
    layout     divides the model over the ranks that torchrun started, each of which calls this. It returns on rank 0
               alone; the others work for rank 0 until its program ends, and then exit
    adapters   directories of low-rank adapters in PEFT's layout, by the names that requests have for them (option
               `adapter`); all lie over this one model, and requests with and without them are decoded together

    Raises ConfigError, WeightsError or DeviceError, which say what to do.
    """
    wanted, where = _dtype(dtype), _device(device)
    policy = None if quantize is None else swap.Policy.in_memory(quantize)
    away = _offload(offload, offload_dir, expert_cache_bytes)
    _check_spill(spill_bytes, spill_dir)
    if cache_dir is not None and (where.type != "cpu" or away is not None or (layout is not None and layout.world > 1)):
        raise ConfigError("cache_dir keeps whole models on the processor: not with a GPU, offload or several ranks")
    directory = hub.resolve(name_or_path)
    tokenizer = Tokenizer.load(directory)
    arrival: ready.Arrival | None = None
    if layout is not None and layout.world > 1:
        if away is not None:
            raise ConfigError(f"offload is {offload!r} and layout has {layout.world} ranks: give one of the two")
        place = swap.placer(policy, wanted)
        model, shelf = _load_on_ranks(directory, wanted, where, place, layout, progress, adapters or {})
    elif away is None:
        kept = None if cache_dir is None else Path(cache_dir)
        model, arrival = _load_whole(directory, wanted, where, policy, kept, progress)
    else:
        model = _load_with_experts_away(directory, wanted, where, policy, away, progress)
    if layout is None or layout.world == 1:
        shelf = _shelf(model, _read_adapters(adapters or {}, model.config))
    proposer = None if speculate is None else _proposer(speculate, tokenizer, wanted, where)
    spill = None if spill_bytes is None else _spill(spill_bytes, spill_dir)
    return Assistant(
        model,
        tokenizer,
        kv_bytes=kv_bytes,
        kv_dtype=kv_dtype,
        spill=spill,
        proposer=proposer,
        arrival=arrival,
        shelf=shelf,
    )


class Prompter:
    """What stands before a model: messages to ids and tiles, options to compiled grammars. Needs no weights.

    May be pickled, for a process that has no model.
    """

    def __init__(self, config: LlamaConfig, tokenizer: Tokenizer) -> None:
        """Raises ConfigError when the tokenizer is not this model's."""
        _check_pair(config, tokenizer)
        self.config = config
        self.tokenizer = tokenizer
        self.stop_ids = tokenizer.stop_ids | frozenset(config.stop_ids)
        self._renderer = Renderer(tokenizer, config.vision)

    def __reduce__(self) -> tuple[type["Prompter"], tuple[LlamaConfig, Tokenizer]]:
        return Prompter, (self.config, self.tokenizer)

    def prompt(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        *,
        tool_style: ToolStyle = "pythonic",
        tools_in: ToolsIn = "system",
    ) -> Prompt:
        """Returns the ids and tiles that a model reads to answer."""
        return self.rendered(messages, _tools(tools), {"tool_style": tool_style, "tools_in": tools_in})[0]

    def text_prompt(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """Returns the ids and tiles that a model reads to go on after `text`, which follows the pictures."""
        return self._renderer.text(text, images)

    def prepare(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> tuple[Prompt, Options]:
        """Returns what `respond` has the model read, and how it is answered, grammars compiled: for a `Session`.

        Compiling takes time, so whoever has several users does this outside of the thread that steps.
        """
        prompt, others = self.rendered(messages, _tools(tools), options)
        return prompt, self.compiled(others)

    def compiled(self, options: Options) -> Options:
        """Returns the options with a compiled grammar in place of whatever says what the text must look like."""
        named: dict[str, Any] = dict(options)
        rule = _rule({name: named.pop(name, None) for name in GRAMMARS})
        if rule is not None:
            own, more = _stop_ids(options, self.stop_ids), options.get("stop_ids", ())
            named["grammar"] = self.matcher(rule, own.union(more)) if isinstance(rule, Grammar) else rule
        compiled: Options = Options(**named)  # type: ignore[typeddict-item]
        return compiled

    def matcher(self, rule: Grammar, stop_ids: frozenset[int]) -> Matcher:
        """Returns a grammar at the beginning of a text. Raises PromptError when it cannot be followed."""
        return self._vocabulary.compile(rule, stop_ids)

    def rendered(
        self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool], options: ChatOptions
    ) -> tuple[Prompt, Options]:
        """Returns the rendered prompt, and the options that are left for making the answer."""
        if not messages:
            raise PromptError("messages is empty: give at least one message")
        others: dict[str, Any] = _with_tool_choice(tools, options)
        written = {name: others.pop(name) for name in ("tool_style", "tools_in") if name in others}
        reply = others.pop("reply", "new")
        read = [
            message if isinstance(message, Message) else Message.from_dict(message, where=f"messages[{i}]")
            for i, message in enumerate(messages)
        ]
        answered: Options = Options(**others)  # type: ignore[typeddict-item]
        if reply != "continue":
            return self._renderer.render(read, tools, reply=reply == "new", **written), answered
        *before, last = read
        if last.role != "assistant" or last.tool_calls or last.images:
            raise PromptError("messages: the last one is no text of an assistant, so it cannot be continued")
        prompt = self._renderer.render(before, tools, **written)
        return Prompt([*prompt.ids, *self.tokenizer.encode(last.text)], prompt.tiles), answered

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        tokenizer = self.tokenizer
        return Vocabulary(tokenizer.token_bytes(), sorted(tokenizer.special.values()), tokenizer.encode)


class Assistant:
    """A model that chats and completes. Its calls share one engine and what that remembers, and no other state."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        kv_bytes: int | None = None,
        kv_dtype: str | None = None,
        spill: Spill | None = None,
        proposer: Proposer | None = None,
        arrival: ready.Arrival | None = None,
        shelf: Shelf | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`kv_bytes` and `kv_dtype` as in `load`; `spill` keeps what must leave the cache; `proposer` guesses tokens;
        `arrival` is what of the weights is still being read; `shelf` has the adapters that answers may ask for.

        Raises ConfigError when the tokenizer is not this model's.
        """
        self.prompter = Prompter(model.config, tokenizer)
        kv.kv_dtype(kv_dtype, torch.float32)  # a wrong name is wrong now, not when the engine is first needed
        self.model = model
        self.tokenizer = tokenizer
        self._kv_bytes = kv_bytes
        self._kv_dtype = kv_dtype
        self._spill = spill
        self._proposer = proposer
        self._arrival = arrival
        self._shelf = shelf
        self._clock = clock
        self._textless_ids = range(tokenizer.vocab_size, model.config.text.vocab_size)

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that were loaded."""
        return () if self._shelf is None else tuple(self._shelf.names)

    def wait(self) -> None:
        """Returns when all weights are in memory. Nothing needs this but measurements: answers come before, too."""
        if self._arrival is not None:
            self._arrival.wait()

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Message | list[Message]:
        """Returns the assistant's next message, with tool calls if it makes any; a list of messages when n is above 1.

        Messages are `Message` or dictionaries in OpenAI's shape. Raises PromptError before anything runs.
        """
        replies = [answer.message for answer in self.respond(messages, tools, **options).answers]
        return replies if options.get("n", 1) > 1 else replies[0]

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Iterator[str]:
        """Returns the text of the next message piece by piece; tool calls come as the text that they are written in."""
        prompt, others = self.prompter.rendered(messages, _tools(tools), options)
        return self._texts(prompt, others)

    def complete(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> str | list[str]:
        """Returns how the model goes on after `text`, which follows the pictures; a list of texts when n is above 1."""
        texts = [answer.text for answer in self.extend(text, images, **options).answers]
        return texts if options.get("n", 1) > 1 else texts[0]

    def stream_complete(
        self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]
    ) -> Iterator[str]:
        """Returns the continuation of `text` piece by piece."""
        return self._texts(self.text_prompt(text, images), options)

    def respond(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Response:
        """Does what `chat` does. Returns also finish reasons, ids, log-probabilities, usage and timings."""
        known = _tools(tools)
        prompt, others = self.prompter.rendered(messages, known, options)
        return self._collect(prompt, others, known)

    def extend(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> Response:
        """Does what `complete` does. Returns also finish reasons, ids, log-probabilities, usage and timings."""
        return self._collect(self.text_prompt(text, images), options, ())

    def prompt(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        *,
        tool_style: ToolStyle = "pythonic",
        tools_in: ToolsIn = "system",
    ) -> Prompt:
        """Returns the ids and tiles that `respond` has the model read."""
        return self.prompter.prompt(messages, tools, tool_style=tool_style, tools_in=tools_in)

    def prepare(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> tuple[Prompt, Options]:
        """Does what the prompter's `prepare` does."""
        return self.prompter.prepare(messages, tools, **options)

    def text_prompt(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """Returns the ids and tiles that `extend` has the model read."""
        return self.prompter.text_prompt(text, images)

    def answer_all(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[tuple[Answer, ...]]:
        """Returns the n answers to each of many prompts, which are decoded together; the same as one by one.

        Raises PromptError or CapacityError before anything runs.
        """
        session, n = self.session(), options.get("n", 1)
        numbers = [session.begin(prompt, **options) for prompt in prompts]
        pieces: dict[tuple[int, int], list[Piece]] = {(number, i): [] for number in numbers for i in range(n)}
        while not session.is_idle:
            for number, piece in session.step():
                pieces[number, piece.sample].append(piece)
        answers = [_answer(of_sample, ()) for of_sample in pieces.values()]
        return [tuple(answers[i : i + n]) for i in range(0, len(answers), n)]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Piece]:
        """Returns the pieces of all n answers to a prompt as they are made. Dropping the iterator ends the work.

        Raises PromptError or CapacityError at once, not at the first piece.
        """
        session = self.session()
        session.begin(prompt, **options)
        return _pieces(session)

    def session(self) -> "Session":
        """Returns a new session on this model. All sessions decode together and share what is remembered of prompts."""
        return Session(self._engine.open(), self.tokenizer, self.prompter.stop_ids, self.prompter.matcher)

    def forget(self) -> None:
        """Forgets what is remembered of prompts: call it when the model's weights have changed."""
        self._engine.engine.forget()

    def prompt_logprobs(self, prompt: Prompt, n: int = 0, adapter: str | None = None) -> list[TokenLogprobs]:
        """Returns what the model expected at each id of a prompt but the first: entry i belongs to `prompt.ids[i + 1]`.

        Each holds the `n` most probable ids too. Raises PromptError as `logits`, whose float32 [T V] it needs room for.
        """
        following = torch.tensor(prompt.ids[1:], device=self.model.embedding.weight.device)
        expected: list[TokenLogprobs] = []
        rows = torch.split(self.logits(prompt.ids, prompt.tiles, adapter)[:-1], _ROWS_AT_ONCE)
        for logits, ids in zip(rows, torch.split(following, _ROWS_AT_ONCE), strict=True):
            logprobs = logits.log_softmax(dim=-1)  # R V
            chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
            values, best = logprobs.topk(min(n, logprobs.shape[1]), dim=-1)
            for own, best_row, values_row in zip(chosen, best.tolist(), values.tolist(), strict=True):
                expected.append(TokenLogprobs(own, tuple(zip(best_row, values_row, strict=True))))
        return expected

    def logits(self, ids: Sequence[int], tiles: Tensor | None = None, adapter: str | None = None) -> Tensor:
        """Returns the logits float32 [T V] behind each of `ids`; `tiles` [I 3 S S] belong to the patch ids in order."""
        return score(self.model, ids, tiles, self._shelf, adapter)

    @property
    def engine(self) -> Engine:
        """The engine that answers, for ids and events as they are. Step it only while nobody else uses the model."""
        return self._engine.engine

    @cached_property
    def _engine(self) -> SharedEngine:
        engine = Engine(
            self.model,
            forbidden_ids=self._textless_ids,
            kv_bytes=self._kv_bytes,
            kv_dtype=self._kv_dtype,
            spill=self._spill,
            proposer=self._proposer,
            shelf=self._shelf,
        )
        return SharedEngine(engine)

    @property
    def drafts(self) -> tuple[int, int]:
        """How many next tokens were guessed since the model was loaded, and how many of those guesses were right."""
        load = self._engine.engine.load
        return load.n_drafted, load.n_accepted

    def _texts(self, prompt: Prompt, options: Options) -> Iterator[str]:
        if options.get("n", 1) != 1:
            raise PromptError(f"n is {options['n']}: a stream of text shows one answer; use `stream` for several")
        return (piece.text for piece in self.stream(prompt, **options) if piece.text)

    def _collect(self, prompt: Prompt, options: Options, tools: Sequence[Tool]) -> Response:
        begin = self._clock()
        return gather(self.stream(prompt, **options), len(prompt.ids), options.get("n", 1), tools, begin, self._clock)


Sample = tuple[int, int]
"""A number that a session gave, and which of the answers to its prompt."""


class Session:
    """Answers that grow together on one model: `begin` queues, `step` works, `end` drops. For one thread at a time."""

    def __init__(
        self,
        engine: Share,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        matcher: Callable[[Grammar, frozenset[int]], Matcher],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._matcher = matcher
        self._growing: dict[Sample, _Growing] = {}  # every sample that has not ended
        self.n_made = 0
        """Tokens of all its answers so far, told or not."""

    @property
    def n_waiting(self) -> int:
        """Samples that have not begun."""
        return self._engine.n_waiting

    @property
    def n_running(self) -> int:
        """Samples that are being read or decoded."""
        return self._engine.n_running

    @property
    def running(self) -> list[tuple[int, int]]:
        """Samples (number, sample) that are being read or decoded."""
        return self._engine.running

    @property
    def is_idle(self) -> bool:
        return self._engine.is_idle

    def begin(self, prompt: Prompt, *, joins: bool = False, **options: Unpack[Options]) -> int:
        """Queues the n answers to a prompt and returns their number. Raises PromptError or CapacityError.

        With `joins`, tokens of a sample that are told together are one piece. Their ids, log-probabilities and routes
        are lost but those of the last.
        """
        request, shown = _request(prompt, options, self._stop_ids, self._matcher)
        growing = [_Growing(Detokenizer(self._tokenizer, **shown), joins) for _ in range(request.n)]
        number = self._engine.add(request)
        self._growing |= {(number, sample): each for sample, each in enumerate(growing)}
        return number

    def step(self, due: Callable[[list[Sample]], Iterable[Sample]] = iter) -> list[tuple[int, Piece]]:
        """Returns new pieces with the numbers they belong to, after running the model once unless some are there.

        A stop string ends its sample. `due` says which of the samples that go on, and got something in this step, are
        told now: what is new of the others waits for a later step of theirs, at most until their end.
        A step that fails ends all answers of this session, and raises what went wrong.
        """
        growing, n_made = self._growing, self.n_made
        going: list[Sample] = []
        pieces: list[tuple[int, Piece]] = []
        for event in self._events():
            key = event.request_id, event.sample
            if (each := growing.get(key)) is None:  # a stop string ended it, and the step gave it more tokens
                continue
            n_made += event.token is not None
            if not each.take(event):
                going.append(key)
                continue
            pieces += [(event.request_id, piece) for piece in each.tell()]
            del growing[key]
            if event.finish is None:
                self._engine.abort(*key)
        self.n_made = n_made
        return pieces + [(key[0], piece) for key in due(going) if key in growing for piece in growing[key].tell()]

    def _events(self) -> list[Event]:
        try:
            return self._engine.step()
        except Exception:
            self._growing.clear()
            raise

    def end(self, number: int, sample: int | None = None) -> None:
        """Drops the answers of `number` that have not ended, or one of them, with their caches; no piece of them comes.

        What has ended already is left as it is.
        """
        for event in self._engine.abort(number, sample):
            self._growing.pop((event.request_id, event.sample), None)

    def close(self) -> None:
        """Drops all answers that have not ended."""
        for number in {number for number, _ in self._growing}:
            self.end(number)


class _Growing:
    """A sample that has not ended: its text so far, and what of it was not told yet."""

    __slots__ = ("_events", "_has_stop", "_joins", "_pieces", "_reader")

    def __init__(self, reader: Detokenizer, joins: bool) -> None:
        self._reader = reader
        self._has_stop = reader.has_stop
        self._joins = joins
        self._events: list[Event] = []  # that were not read
        self._pieces: list[Piece] = []  # that were, and were not told

    def take(self, event: Event) -> bool:
        """Takes what comes next, and says whether that ends the sample: a stop string shows at once."""
        self._events.append(event)
        if not self._has_stop:
            return event.finish is not None
        self._read()
        return event.finish is not None or self._reader.stopped is not None

    def tell(self) -> list[Piece]:
        """Returns what is new."""
        self._read()
        pieces, self._pieces = self._pieces, []
        return [_joined(pieces)] if self._joins and len(pieces) > 1 else pieces

    def _read(self) -> None:
        events, self._events = self._events, []
        if self._joins and events:
            self._pieces.append(_piece(events, self._reader))
        else:
            self._pieces += [_piece([event], self._reader) for event in events]


def _pieces(session: Session) -> Iterator[Piece]:
    try:
        while not session.is_idle:
            yield from (piece for _, piece in session.step())
    finally:  # whoever stops listening ends the work
        session.close()


def _piece(events: Sequence[Event], reader: Detokenizer) -> Piece:
    """Returns the piece of one sample's next events."""
    ids, last = [event.token for event in events if event.token is not None], events[-1]
    text = reader.push(*ids)
    finish: Finish | None = last.finish if reader.stopped is None else "stop"
    if finish is not None:
        text += reader.finish()
    return Piece(
        sample=last.sample,
        text=text,
        token=ids[-1] if ids else None,
        logprobs=last.logprobs,
        finish=finish,
        n_cached=last.n_cached,
        stopped=reader.stopped if finish == "stop" else None,
        routes=last.routes,
        n_before=max(len(ids) - 1, 0),
    )


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Returns one piece for several of one sample."""
    n_tokens = sum(piece.n_tokens for piece in pieces)
    return pieces[-1]._replace(
        text="".join(piece.text for piece in pieces),
        token=next((piece.token for piece in reversed(pieces) if piece.token is not None), None),
        n_before=max(n_tokens - 1, 0),
    )


def gather(
    pieces: Iterable[Piece],
    prompt_len: int,
    n: int = 1,
    tools: Sequence[Tool] = (),
    begin: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Response:
    """Returns the n whole answers that `pieces` grow to, with usage, and timings from `begin` (None: from now) on."""
    begin, first = clock() if begin is None else begin, None
    samples: list[list[Piece]] = [[] for _ in range(n)]
    for piece in pieces:
        first = clock() if first is None else first
        samples[piece.sample].append(piece)
    end = clock()
    answers = tuple(_answer(of_sample, tools) for of_sample in samples)
    return Response(
        answers=answers,
        usage=Usage(
            prompt_tokens=prompt_len,
            completion_tokens=sum(len(answer.ids) for answer in answers),
            cached_tokens=max(of_sample[0].n_cached for of_sample in samples),
        ),
        timings=Timings(first_token_seconds=(end if first is None else first) - begin, total_seconds=end - begin),
    )


def _answer(pieces: Sequence[Piece], tools: Sequence[Tool]) -> Answer:
    """Joins a sample's pieces. Only with tools is text searched for calls: without, brackets are just words."""
    text = "".join(piece.text for piece in pieces)
    finish = pieces[-1].finish
    assert finish is not None, "the last piece of a sample says why it ended"
    plain = Message("assistant", (TextPart(text),) if text else ())
    return Answer(
        text=text,
        message=parse(text, tools) if tools else plain,
        ids=tuple(piece.token for piece in pieces if piece.token is not None),
        finish=finish,
        logprobs=tuple(piece.logprobs for piece in pieces if piece.logprobs is not None),
    )


def _request(
    prompt: Prompt,
    options: Options,
    stop_ids: frozenset[int],
    matcher: Callable[[Grammar, frozenset[int]], Matcher],
) -> tuple[Request, dict[str, Any]]:
    """Returns the engine's request, and what the engine does not know: stop strings and how text is shown.

    Raises TypeError for an option that is none.
    """
    named: dict[str, Any] = dict(options)
    known = ChatOptions.__annotations__
    for name in named.keys() - known.keys():
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise TypeError(f"{name}: is no option of an answer; {remedy}")
    stop = named.pop("stop", ())
    shown = {
        "stop": [stop] if isinstance(stop, str) else stop,
        "include_stop": named.pop("include_stop", False),
        "show_special": named.pop("show_special", None),
    }
    stop_ids = _stop_ids(options, stop_ids)
    for name in ("ignore_stop_ids", "stop_ids"):
        named.pop(name, None)
    asked = ("n", "priority", "wants_routes", "adapter")
    wanted: dict[str, Any] = {name: named.pop(name) for name in asked if name in named}
    if (left := named.pop("deadline_seconds", None)) is not None:
        wanted["deadline_seconds"] = time.monotonic() + left  # the engine's clock
    rule = _rule({name: named.pop(name, None) for name in GRAMMARS})
    sampling = _sampling(stop_ids=stop_ids, n_logprobs=named.pop("logprobs", None), **named)
    grammar = matcher(rule, stop_ids) if isinstance(rule, Grammar) else rule
    return Request(ids=prompt.ids, tiles=prompt.tiles, sampling=sampling, grammar=grammar, **wanted), shown


_same_sampling = lru_cache(_SAMPLINGS, typed=True)(Sampling)


def _sampling(**named: Any) -> Sampling:
    """Returns settings: those of before for whoever asks the same, as most do, since checking takes a while."""
    try:
        return _same_sampling(**named)
    except TypeError:  # lists and mappings are not remembered
        return Sampling(**named)


def _stop_ids(options: Options, own: frozenset[int]) -> frozenset[int]:
    """Returns the ids that end an answer."""
    others = options.get("stop_ids")
    own = frozenset() if options.get("ignore_stop_ids") else own
    return own.union(others) if others else own


def _rule(options: Mapping[str, Any]) -> Grammar | Matcher | None:
    """Returns the grammar that a text is to follow, compiled or not, if any."""
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        raise PromptError(f"{' and '.join(given)} are given: a text follows one grammar; leave the others out")
    for name, value in given.items():
        return value if isinstance(value, Grammar | Matcher) else GRAMMARS[name](value)
    return None


def _with_tool_choice(tools: Sequence[Tool], options: ChatOptions) -> dict[str, Any]:
    """Returns the options with a grammar in place of `tool_choice`, where that asks for one."""
    others: dict[str, Any] = dict(options)
    choice, most = others.pop("tool_choice", "auto"), others.pop("max_calls", None)
    schema, is_ruled = others.get("json_schema"), any(others.get(name) is not None for name in GRAMMARS)
    style = others.get("tool_style", "pythonic")
    if choice == "auto" and tools and schema is not None:
        del others["json_schema"]
        calls = tool_grammar(tools, style, most=most).replace("start:", "calls:", 1)
        text = schema if isinstance(schema, str) else json.dumps(schema)
        others["grammar"] = lark(f"start: calls | reply\nreply: %json {text}\n{calls}", "json_schema")
    elif choice != "auto":
        if is_ruled:
            raise PromptError(f"tool_choice is {choice!r} beside a grammar for the answer: give one of the two")
        name = None if choice == "required" else choice
        others["grammar"] = lark(tool_grammar(tools, style, name, most=most), "tool_choice")
    elif any(tool.strict for tool in tools) and not is_ruled:
        others["grammar"] = lark(words_and_calls(tools, style, most=most), "tools")
    return others


def _tools(tools: Sequence[Tool | Mapping[str, Any]]) -> list[Tool]:
    return [
        tool if isinstance(tool, Tool) else Tool.from_dict(tool, where=f"tools[{i}]") for i, tool in enumerate(tools)
    ]


def _offload(where: attach.Where | None, folder: str | Path | None, cache_bytes: int | None) -> attach.Offload | None:
    if where is not None:
        return attach.Offload(where=where, folder=None if folder is None else Path(folder), cache_bytes=cache_bytes)
    for name, value in (("offload_dir", folder), ("expert_cache_bytes", cache_bytes)):
        if value is not None:
            raise ConfigError(
                f"{name} is {str(value)!r} and offload is not given: give offload='disk', or leave both out"
            )
    return None


def _check_spill(n_bytes: int | None, folder: str | Path | None) -> None:
    if n_bytes is None and folder is not None:
        raise ConfigError(
            f"spill_dir is {str(folder)!r} and spill_bytes is not given: say how much may go there, or leave both out"
        )
    if n_bytes is not None and n_bytes < 1:
        raise ConfigError(f"spill_bytes is {n_bytes}: give 1 or more, or none to keep nothing")


def _spill(n_bytes: int, folder: str | Path | None) -> Spill:
    return MemorySpill(n_bytes) if folder is None else FileSpill(Path(folder), n_bytes)


def _load_whole(
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    policy: swap.Policy | None,
    kept: Path | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Llama, ready.Arrival | None]:
    """Loads a model, from the folder where it was kept as it runs if it is there; otherwise keeps it there."""
    if kept is not None:
        source = open_source(directory, dtype)
        identity = attach.identify(source.files(source.pieces), _numbers(source.dtype, dtype, policy, device))
        with torch.device("meta"):
            model = Llama(source.config)
        arrival = ready.fill(model, kept / identity, identity, progress)
        if arrival is not None:
            return model, arrival
    place = swap.placer(policy, dtype)
    model = checkpoint.load(directory, dtype=dtype, device=device, place=place, progress=progress)
    if kept is not None:
        ready.keep(model, kept / identity, identity)
    return model, None


def _numbers(stored: torch.dtype, dtype: torch.dtype | None, policy: swap.Policy | None, device: torch.device) -> str:
    """Says what a checkpoint becomes: together with its files this names what is kept of it."""
    small = policy and (policy.to, policy.head_to, policy.head_bits)
    return f"puna {__version__}, {stored}, {dtype}, {small}, {device.type}"


def _load_with_experts_away(
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    policy: swap.Policy | None,
    offload: attach.Offload,
    progress: Callable[[int, int], None] | None,
) -> Llama:
    """Loads all but the routed experts, and gives `offload` those in the form that they would have had."""
    source = open_source(directory, dtype)
    attach.check(offload, source.config, device)
    experts = {name for name in source.pieces if part_of(name) == "routed_experts"}
    n_bytes, n_away = source.n_bytes, sum(source.n_bytes_of(name) for name in experts)

    def tell(done: int, _: int) -> None:
        if progress is not None:
            progress(done, n_bytes)

    def tell_stored(n_done: int, n_all: int) -> None:
        tell(n_bytes - n_away + n_away * n_done // n_all, n_bytes)

    def read(key: Key) -> Pair:
        names = (f"layers.{key.layer}.moe.experts.{name}" for name in Pair._fields)
        gate_up, down = (
            form(name, stack_of_one(source.of_expert(name, key.expert).read_stored(name, staging, device)))
            for name in names
        )
        return Pair(gate_up, down)

    form, staging = swap.former(policy, dtype), Staging()
    model = checkpoint.load(
        directory,
        dtype=dtype,
        device=device,
        place=swap.placer(policy, dtype),
        leave_out=experts.__contains__,
        progress=tell,
    )
    identity = attach.identify(source.files(experts), _numbers(source.dtype, dtype, policy, device))
    attach.attach(model, offload, read, identity, tell_stored)
    tell(n_bytes, n_bytes)
    return model


def _proposer(speculate: str | Path, tokenizer: Tokenizer, dtype: torch.dtype | None, device: torch.device) -> Proposer:
    if speculate == "lookup":
        return Lookup()
    directory = hub.resolve(speculate)
    if Tokenizer.load(directory).token_bytes() != tokenizer.token_bytes():
        raise ConfigError(f"speculate is {str(speculate)!r}: its vocabulary is another one; take a model of the same")
    model = checkpoint.load(directory, dtype=dtype, device=device, place=swap.placer(None, dtype))
    return DraftModel(model, tokenizer.vocab_size, max_sequences=MAX_SEQUENCES)


def _load_on_ranks(
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    place: checkpoint.Place,
    layout: Layout,
    progress: Callable[[int, int], None] | None,
    adapters: Mapping[str, str | Path],
) -> tuple[Llama, Shelf | None]:
    """Loads this rank's share, also of adapters. Returns both on rank 0; the others follow it until it lets them go."""
    mesh = parallel.connect(layout, device)
    device = parallel.own_device(device)
    share = parallel.Share(checkpoint.open_config(directory), layout, mesh.rank)
    with torch.device("meta"):
        model = ranks.LeadingLlama(share, mesh) if mesh.is_leader else parallel.ShareOfLlama(share, mesh)
    checkpoint.load(directory, dtype=dtype, device=device, place=place, model=model, share=share, progress=progress)
    read = _read_adapters(adapters, share.whole)
    shelf = _shelf(model, {name: share.part_of_adapter(adapter) for name, adapter in read.items()})
    if isinstance(model, ranks.LeadingLlama):
        atexit.register(parallel.disconnect)
        atexit.register(model.leader.end)  # runs first
        return model, shelf
    ranks.follow(model, lambda model, cache: TorchRunner(model, cache, shelf))
    parallel.disconnect()
    raise SystemExit(0)


def _read_adapters(adapters: Mapping[str, str | Path], config: LlamaConfig) -> dict[str, dict[str, Factors]]:
    return {name: peft.load(Path(directory).expanduser(), config) for name, directory in adapters.items()}


def _shelf(model: Llama, adapters: Mapping[str, Mapping[str, Factors]]) -> Shelf | None:
    return Shelf(model, adapters) if adapters else None


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(
                f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}, or none to keep what is stored"
            )
        return DTYPES[dtype]
    return dtype


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device is {str(device)!r}: not usable here; take cpu, or install its driver") from error
    return place


def _check_pair(config: LlamaConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ConfigError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the model {config.text.vocab_size}: use the model's own"
        )
    patch_id = tokenizer.special.get(PATCH)
    if config.vision is not None and patch_id != config.patch_id:
        raise ConfigError(f"tokenizer has {PATCH} as {patch_id}, the model as {config.patch_id}: use the model's own")
