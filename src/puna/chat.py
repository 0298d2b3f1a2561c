"""An assistant: a model, its tokenizer, and the way from messages to ids and back. Everything above talks to this.

In: messages in OpenAI's shape, pictures, options. Out: messages and text, whole or as they grow, with finish reasons,
usage and log-probabilities for those who ask. Every prompt is checked against model and context before anything runs.
Not here: files (`weights`), the protections (`guard`), HTTP (`serve`), requests of several users at a time (an engine
each).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from puna.config import LlamaConfig
from puna.engine.engine import Engine, score
from puna.engine.request import Event, Finish, Request, Sampling, TokenLogprobs
from puna.errors import ConfigError, DeviceError, PromptError
from puna.model.transformer import Llama
from puna.prompt.detokenize import Detokenizer
from puna.prompt.message import Message, TextPart, Tool
from puna.prompt.parse import parse
from puna.prompt.render import Prompt, Renderer, ToolsIn, ToolStyle
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.vocab import PATCH
from puna.weights import checkpoint, hub

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    logprobs: int | None  # 0: of the chosen tokens; n: also of the n most probable ones
    n: int  # how many answers to the same prompt


class ChatOptions(Options, total=False):
    """Options, and how tools are written: defined in the system or the user turn, called in Python or JSON."""

    tool_style: ToolStyle
    tools_in: ToolsIn


class Piece(NamedTuple):
    """A growing answer's next token and the text that became certain with it, which may be empty or several characters.

    `token` is None where the answer ended without one. The texts of all pieces of a sample, joined, are its answer.
    """

    sample: int
    text: str
    token: int | None
    logprobs: TokenLogprobs | None
    finish: Finish | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished answer. `ids` holds every token made, the stopping one too; `text` neither it nor a stop string."""

    text: str
    message: Message
    ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens read, patch tokens included, and made, over all answers."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock times from the call on. Reading the prompt ends with the first token."""

    first_token_seconds: float
    total_seconds: float

    def tokens_per_second(self, usage: Usage) -> float:
        """Returns the speed of decoding: of all tokens after the first step."""
        seconds = self.total_seconds - self.first_token_seconds
        return (usage.completion_tokens - 1) / seconds if seconds > 0 else 0.0


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
    quantize: Literal["int4", "fp8"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "Assistant":
    """Returns an assistant from "cria" (the model that ships), a directory, or a Hugging Face hub id.

    dtype      "float32", "bfloat16", "float16" or None, which keeps the numbers as they are stored
    device     any torch device; None takes the first GPU, or the processor where there is none
    quantize   only None for now
    progress   is called with bytes loaded and bytes in all

    Raises ConfigError, WeightsError or DeviceError, which say what to do.
    """
    if quantize is not None:
        raise ConfigError(f"quantize is {quantize!r}: not available yet; leave it out to load the weights as they are")
    wanted, place = _dtype(dtype), _device(device)
    directory = hub.resolve(name_or_path)
    tokenizer = Tokenizer.load(directory)
    return Assistant(checkpoint.load(directory, dtype=wanted, device=place, progress=progress), tokenizer)


class Assistant:
    """A model that chats and completes. Calls do not share state, but a model runs one call at a time."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Raises ConfigError when the tokenizer is not this model's."""
        _check_pair(model.config, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self._clock = clock
        self._renderer = Renderer(tokenizer, model.config.vision)
        self._textless_ids = range(tokenizer.vocab_size, model.config.text.vocab_size)

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

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
        prompt, others = self._prompt(messages, _tools(tools), options)
        return self._texts(prompt, others)

    def complete(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> str | list[str]:
        """Returns how the model goes on after `text`, which follows the pictures; a list of texts when n is above 1."""
        texts = [answer.text for answer in self.extend(text, images, **options).answers]
        return texts if options.get("n", 1) > 1 else texts[0]

    def stream_complete(
        self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]
    ) -> Iterator[str]:
        """Returns the continuation of `text` piece by piece."""
        return self._texts(self._renderer.text(text, images), options)

    def respond(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Response:
        """Does what `chat` does. Returns also finish reasons, ids, log-probabilities, usage and timings."""
        known = _tools(tools)
        prompt, others = self._prompt(messages, known, options)
        return self._collect(prompt, others, known)

    def extend(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> Response:
        """Does what `complete` does. Returns also finish reasons, ids, log-probabilities, usage and timings."""
        return self._collect(self._renderer.text(text, images), options, ())

    def prompt(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        *,
        tool_style: ToolStyle = "pythonic",
        tools_in: ToolsIn = "system",
    ) -> Prompt:
        """Returns the ids and tiles that `respond` has the model read."""
        return self._prompt(messages, _tools(tools), {"tool_style": tool_style, "tools_in": tools_in})[0]

    def text_prompt(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """Returns the ids and tiles that `extend` has the model read."""
        return self._renderer.text(text, images)

    def answer_all(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[tuple[Answer, ...]]:
        """Returns the n answers to each of many prompts, which are decoded together; the same as one by one.

        Raises PromptError or CapacityError before anything runs.
        """
        engine = Engine(self.model, forbidden_ids=self._textless_ids)
        readers: dict[tuple[int, int], Detokenizer] = {}
        for prompt in prompts:
            request, stop = _request(prompt, options, self._stop_ids)
            number = engine.add(request)
            readers |= {(number, i): Detokenizer(self.tokenizer, stop) for i in range(request.n)}
        pieces: dict[tuple[int, int], list[Piece]] = {key: [] for key in readers}
        for number, piece in _numbered_pieces(engine, readers):
            pieces[number, piece.sample].append(piece)
        n = options.get("n", 1)
        answers = [_answer(of_sample, ()) for of_sample in pieces.values()]
        return [tuple(answers[i : i + n]) for i in range(0, len(answers), n)]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Piece]:
        """Returns the pieces of all n answers to a prompt as they are made. Dropping the iterator ends the work.

        Raises PromptError or CapacityError at once, not at the first piece.
        """
        request, stop = _request(prompt, options, self._stop_ids)
        engine = Engine(self.model, forbidden_ids=self._textless_ids)
        number = engine.add(request)
        readers = {(number, i): Detokenizer(self.tokenizer, stop) for i in range(request.n)}
        return (piece for _, piece in _numbered_pieces(engine, readers))

    def logits(self, ids: Sequence[int], tiles: Tensor | None = None) -> Tensor:
        """Returns the logits float32 [T V] behind each of `ids`; `tiles` [I 3 S S] belong to the patch ids in order."""
        return score(self.model, ids, tiles)

    @property
    def _stop_ids(self) -> frozenset[int]:
        return self.tokenizer.stop_ids | frozenset(self.config.stop_ids)

    def _prompt(
        self, messages: Sequence[Message | Mapping[str, Any]], tools: Sequence[Tool], options: ChatOptions
    ) -> tuple[Prompt, Options]:
        """Returns the rendered prompt, and the options that are left for making the answer."""
        if not messages:
            raise PromptError("messages is empty: give at least one message")
        others: dict[str, Any] = dict(options)
        written = {name: others.pop(name) for name in ("tool_style", "tools_in") if name in others}
        read = [
            message if isinstance(message, Message) else Message.from_dict(message, where=f"messages[{i}]")
            for i, message in enumerate(messages)
        ]
        return self._renderer.render(read, tools, **written), Options(**others)  # type: ignore[typeddict-item]

    def _texts(self, prompt: Prompt, options: Options) -> Iterator[str]:
        if options.get("n", 1) != 1:
            raise PromptError(f"n is {options['n']}: a stream of text shows one answer; use `stream` for several")
        return (piece.text for piece in self.stream(prompt, **options) if piece.text)

    def _collect(self, prompt: Prompt, options: Options, tools: Sequence[Tool]) -> Response:
        begin, first = self._clock(), None
        stream = self.stream(prompt, **options)
        samples: list[list[Piece]] = [[] for _ in range(options.get("n", 1))]
        for piece in stream:
            first = self._clock() if first is None else first
            samples[piece.sample].append(piece)
        end = self._clock()
        answers = tuple(_answer(pieces, tools) for pieces in samples)
        return Response(
            answers=answers,
            usage=Usage(prompt_tokens=len(prompt.ids), completion_tokens=sum(len(answer.ids) for answer in answers)),
            timings=Timings(first_token_seconds=(end if first is None else first) - begin, total_seconds=end - begin),
        )


def _numbered_pieces(engine: Engine, readers: Mapping[tuple[int, int], Detokenizer]) -> Iterator[tuple[int, Piece]]:
    """Steps an engine until it is idle; each piece comes with its request's id. A stop string ends its sample."""
    while not engine.is_idle:
        for event in engine.step():
            reader = readers[event.request_id, event.sample]
            piece = _piece(event, reader)
            if piece.finish is not None and event.finish is None:
                engine.abort(event.request_id, event.sample)
            yield event.request_id, piece


def _piece(event: Event, reader: Detokenizer) -> Piece:
    text = "" if event.token is None else reader.push(event.token)
    finish: Finish | None = event.finish if reader.stopped is None else "stop"
    if finish is not None:
        text += reader.finish()
    return Piece(event.sample, text, event.token, event.logprobs, finish)


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


def _request(prompt: Prompt, options: Options, stop_ids: frozenset[int]) -> tuple[Request, Sequence[str]]:
    """Returns the engine's request and the stop strings, which the engine does not know."""
    named: dict[str, Any] = dict(options)
    stop = named.pop("stop", ())
    n = named.pop("n", 1)
    sampling = Sampling(stop_ids=stop_ids, n_logprobs=named.pop("logprobs", None), **named)
    return Request(ids=prompt.ids, tiles=prompt.tiles, sampling=sampling, n=n), [stop] if isinstance(
        stop, str
    ) else stop


def _tools(tools: Sequence[Tool | Mapping[str, Any]]) -> list[Tool]:
    return [
        tool if isinstance(tool, Tool) else Tool.from_dict(tool, where=f"tools[{i}]") for i, tool in enumerate(tools)
    ]


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
