"""Pieces of answers to what clients read: chunks while an answer grows, or the whole.

In: pieces, in order, and what was asked. Out: chunk choices; a whole choice is its chunks joined, so a stream and a
plain answer cannot differ. With tools, what could be a call is held back until that is certain.
Not here: who makes the pieces (`worker`), requests (`convert`), sending (`app`).

Source of the shapes: OpenAI's API reference; event stream format of the HTML standard, section 9.2.
"""

import codecs
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from puna.chat import Piece
from puna.engine.request import TokenLogprobs
from puna.errors import PromptError
from puna.prompt.message import Tool
from puna.prompt.message import ToolCall as Call
from puna.prompt.parse import Reply
from puna.prompt.tokenizer import Tokenizer
from puna.serve.schema import (
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    Chunk,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    FunctionCall,
    PromptTokensDetails,
    RoutedExperts,
    StreamOptions,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    Usage,
)

DONE = b"data: [DONE]\n\n"
PING = b": still here\n\n"
"""A comment, which clients skip: it keeps connections from being closed as idle."""

LEAST_LOGPROB = -9999.0
"""Instead of minus infinity, which JSON cannot hold. Source: vLLM's OpenAI server."""

Results = dict[str, Any]
"""What protections found in a choice, for its last chunk."""

_T = TypeVar("_T")


class Shown(NamedTuple):
    """A token as clients see it. `bytes` is None for a token that stands for no text."""

    token: str
    bytes: bytes | None


def event(value: msgspec.Struct) -> bytes:
    """Returns one server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(value: msgspec.Struct) -> bytes:
    """Returns one server-sent event that is named as its value is tagged, as in OpenAI's Responses and Anthropic's."""
    return f"event: {value.__struct_config__.tag}\n".encode() + event(value)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
    """Returns the counts of a request. `cached_tokens` of the prompts were remembered and not read again."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
    )


def show(tokenizer: Tokenizer, token_id: int) -> Shown:
    """Returns a token's text and bytes. Ids of a padded vocabulary, which no text has, show as their number."""
    if tokenizer.is_special(token_id):
        return Shown(tokenizer.decode([token_id]), None)
    try:
        data = tokenizer.decode_bytes([token_id])
    except PromptError:
        return Shown(f"token_id:{token_id}", None)
    return Shown(data.decode("utf-8", errors="replace"), data)


class Events:
    """The events of one stream of chat or completions: what they have in common, and which of them tell usage."""

    def __init__(
        self, head: dict[str, Any], options: StreamOptions | None, prompt_ids: list[int] | UnsetType = UNSET
    ) -> None:
        """`prompt_ids` are told with the first event."""
        options = StreamOptions() if options is None else options
        self._head = head
        self._prompt_ids = prompt_ids
        self._at_end = options.include_usage
        self._always = options.include_usage and options.continuous_usage_stats

    def of(self, choices: Sequence[ChatChunkChoice] | Sequence[CompletionChoice], usage: Callable[[], Usage]) -> bytes:
        """Returns one event for each chunk. Where usage is wanted at the end only, these hold null, as OpenAI's."""
        given = usage() if self._always else None if self._at_end else UNSET
        return b"".join(event(self._chunk([choice], given)) for choice in choices)

    def end(self, usage: Usage) -> bytes:
        """Returns the last event, behind that with the usage and no choices where it is wanted."""
        return (event(self._chunk([], usage)) if self._at_end else b"") + DONE

    def _chunk(self, choices: list[Any], usage: Usage | UnsetType | None) -> Chunk:
        prompt_ids, self._prompt_ids = self._prompt_ids, UNSET
        return Chunk(**self._head, choices=choices, usage=usage, prompt_token_ids=prompt_ids)


def no_results() -> None:
    """Returns that nobody looked."""


class Routing:
    """Collects where the tokens of a choice went, where pieces say it, for its next chunk."""

    def __init__(self, layers: Sequence[int], n_experts: int) -> None:
        self._layers = list(layers)
        self._n_experts = n_experts
        self._tokens: list[list[list[int]]] = []
        self._read: list[list[int]] | UnsetType = UNSET

    def push(self, piece: Piece) -> None:
        """Notes one token's experts."""
        if piece.routes is not None:
            self._tokens.append(piece.routes.made)
            self._read = self._read if piece.routes.read is None else piece.routes.read

    def take(self) -> RoutedExperts | UnsetType:
        """Returns what was noted since the last call, if anything."""
        tokens, read = self._tokens, self._read
        self._tokens, self._read = [], UNSET
        if not tokens:
            return UNSET
        return RoutedExperts(layers=self._layers, n_experts=self._n_experts, tokens=tokens, prompt_counts=read)


def joined_routes(parts: Sequence[RoutedExperts | UnsetType]) -> RoutedExperts | UnsetType:
    """Returns the experts of all tokens in order, nothing where they were not wanted."""
    given = [part for part in parts if not isinstance(part, UnsetType)]
    if not given:
        return UNSET
    return msgspec.structs.replace(given[0], tokens=[token for part in given for token in part.tokens])


# Chat -------------------------------------------------------------------------------------------------------------


class GrowingChat:
    """One choice of a chat answer. `new_call_id` names calls; `most_calls` is 1 where calls must not be parallel."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        tools: Sequence[Tool],
        *,
        most_calls: int | None,
        new_call_id: Callable[[], str],
        results: Callable[[], Results | None] = no_results,
        wants_ids: bool = False,
        routing: "Routing | None" = None,
    ) -> None:
        self._index = index
        self._routing = Routing((), 0) if routing is None else routing
        self._tokenizer = tokenizer
        self._ids: list[int] | UnsetType = [] if wants_ids else UNSET
        self._reply = Reply(tools) if tools else None
        self._most_calls = most_calls
        self._new_call_id = new_call_id
        self._results = results
        self._n_calls = 0
        self._logprobs: list[TokenLogprob] = []
        self._stopped: str | None = None

    def open(self) -> ChatChunkChoice:
        """Returns the first chunk, which says who speaks."""
        return self._chunk(Delta(role="assistant", content=""), None)

    def push(self, *pieces: Piece) -> ChatChunkChoice | None:
        """Returns what is new, None where nothing is certain yet. Log-probabilities come with the text they led to."""
        for piece in pieces:
            self._logprobs += _chat_logprobs(self._tokenizer, piece)
            self._routing.push(piece)
            if self._ids is not UNSET and piece.token is not None:
                self._ids.append(piece.token)
        self._stopped, finish = pieces[-1].stopped, pieces[-1].finish
        content, calls = self._advance("".join([piece.text for piece in pieces]), finish)
        if not content and not calls and finish is None:
            return None
        delta = Delta(content=content or UNSET, tool_calls=self._calls(calls) or UNSET)
        return self._chunk(delta, "tool_calls" if self._n_calls and finish == "stop" else finish)

    def _advance(self, text: str, finish: str | None) -> tuple[str, Sequence[Call]]:
        if self._reply is None:
            return text, ()
        words, calls = self._reply.push(text)
        if finish is not None:
            last_words, last_calls = self._reply.finish()
            words, calls = words + last_words, calls + last_calls
        return words, calls if self._most_calls is None else calls[: max(self._most_calls - self._n_calls, 0)]

    def _calls(self, calls: Sequence[Call]) -> list[ToolCall]:
        first, self._n_calls = self._n_calls, self._n_calls + len(calls)
        return [
            ToolCall(
                index=first + i,
                id=self._new_call_id(),
                type="function",
                function=FunctionCall(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False)),
            )
            for i, call in enumerate(calls)
        ]

    @property
    def n_misread(self) -> int:
        """Places that began like a call of a tool and were none."""
        return 0 if self._reply is None else self._reply.n_misread

    def _chunk(self, delta: Delta, finish: str | None) -> ChatChunkChoice:
        logprobs, self._logprobs = self._logprobs, []
        ids, self._ids = self._ids, UNSET if self._ids is UNSET else []
        return ChatChunkChoice(
            index=self._index,
            delta=delta,
            logprobs=ChatLogprobs(content=logprobs) if logprobs else None,
            finish_reason=finish,
            token_ids=ids,
            routed_experts=self._routing.take(),
            content_filter_results=(self._results() or UNSET) if finish else UNSET,
            stop_reason=self._stopped or UNSET,
        )


def whole_chat(chunks: Sequence[ChatChunkChoice]) -> ChatChoice:
    """Joins all chunks of one choice."""
    content = "".join(_given(chunk.delta.content, "") for chunk in chunks)
    calls = [call for chunk in chunks for call in _given(chunk.delta.tool_calls, [])]
    logprobs = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    finish = chunks[-1].finish_reason
    assert finish is not None, "the last chunk of a choice says why it ended"
    return ChatChoice(
        index=chunks[0].index,
        message=ChatMessage(
            role="assistant",
            content=None if calls and not content else content,
            refusal=None,
            tool_calls=[msgspec.structs.replace(call, index=UNSET) for call in calls] or UNSET,
        ),
        logprobs=ChatLogprobs(content=logprobs) if logprobs else None,
        finish_reason=finish,
        token_ids=_joined([chunk.token_ids for chunk in chunks]),
        routed_experts=joined_routes([chunk.routed_experts for chunk in chunks]),
        content_filter_results=chunks[-1].content_filter_results,
        stop_reason=chunks[-1].stop_reason,
    )


def _chat_logprobs(tokenizer: Tokenizer, piece: Piece) -> list[TokenLogprob]:
    if piece.token is None or piece.logprobs is None:
        return []
    own = show(tokenizer, piece.token)
    top = [(show(tokenizer, id_), logprob) for id_, logprob in piece.logprobs.top]
    return [
        TokenLogprob(
            token=own.token,
            logprob=max(piece.logprobs.chosen, LEAST_LOGPROB),
            bytes=_numbers(own.bytes),
            top_logprobs=[
                TopLogprob(token=each.token, logprob=max(logprob, LEAST_LOGPROB), bytes=_numbers(each.bytes))
                for each, logprob in top
            ],
        )
    ]


def _numbers(data: bytes | None) -> list[int] | None:
    return None if data is None else list(data)


# Plain completion -------------------------------------------------------------------------------------------------


class GrowingCompletion:
    """One choice of a plain completion."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        *,
        wants_logprobs: bool,
        results: Callable[[], Results | None] = no_results,
        prompt_ids: Sequence[int] | None = None,
        routing: "Routing | None" = None,
    ) -> None:
        """`prompt_ids` are told with the first chunk, and the ids of tokens with each; None tells neither."""
        self._index = index
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs
        self._results = results
        self._ids: list[int] | UnsetType = UNSET if prompt_ids is None else []
        self._prompt_ids = UNSET if prompt_ids is None else list(prompt_ids)
        self._routing = Routing((), 0) if routing is None else routing
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._entries: list[tuple[int, TokenLogprobs | None, int]] = []  # id, log-probabilities, offset

    def echo(
        self, text: str, ids: Sequence[int], expected: Sequence[TokenLogprobs], finish: str | None
    ) -> CompletionChoice:
        """Returns the prompt as the first chunk. `expected` belongs to `ids[1:]`; empty where nobody wants it."""
        if self._wants_logprobs:
            for token_id, logprobs in zip(ids, (None, *expected), strict=True):
                self._enter(token_id, logprobs, "")
        self._offset = len(text)
        self._decoder.reset()
        return self._chunk(text, finish)

    def push(self, *pieces: Piece) -> CompletionChoice | None:
        """Returns what is new, None where nothing is certain yet. Log-probabilities come with the text they led to."""
        for piece in pieces:
            self._routing.push(piece)
            if piece.token is not None and self._ids is not UNSET:
                self._ids.append(piece.token)
            if piece.token is not None and self._wants_logprobs:
                stops = piece.token in self._tokenizer.stop_ids
                self._enter(piece.token, piece.logprobs, "" if stops else show(self._tokenizer, piece.token).token)
        text, finish = "".join([piece.text for piece in pieces]), pieces[-1].finish
        return self._chunk(text, finish) if text or finish is not None else None

    def _enter(self, token_id: int, logprobs: TokenLogprobs | None, special_text: str) -> None:
        """Notes a token and where its text begins: behind every character that was complete before it."""
        self._entries.append((token_id, logprobs, self._offset))
        data = show(self._tokenizer, token_id).bytes
        self._offset += len(special_text) if data is None else len(self._decoder.decode(data))

    def _chunk(self, text: str, finish: str | None) -> CompletionChoice:
        entries, self._entries = self._entries, []
        logprobs = CompletionLogprobs(
            tokens=[self._key(id_) for id_, _, _ in entries],
            token_logprobs=[None if given is None else max(given.chosen, LEAST_LOGPROB) for _, given, _ in entries],
            top_logprobs=[self._top(given) for _, given, _ in entries],
            text_offset=[offset for _, _, offset in entries],
        )
        ids, self._ids = self._ids, UNSET if self._ids is UNSET else []
        prompt_ids, self._prompt_ids = self._prompt_ids, UNSET
        return CompletionChoice(
            index=self._index,
            text=text,
            logprobs=logprobs if self._wants_logprobs else None,
            finish_reason=finish,
            token_ids=ids,
            prompt_token_ids=prompt_ids,
            routed_experts=self._routing.take(),
            content_filter_results=(self._results() or UNSET) if finish else UNSET,
        )

    def _top(self, logprobs: TokenLogprobs | None) -> dict[str, float] | None:
        if logprobs is None:
            return None
        return {self._key(id_): max(logprob, LEAST_LOGPROB) for id_, logprob in logprobs.top}

    def _key(self, token_id: int) -> str:
        """Returns a token's text, or its bytes spelt out where they are no whole characters: keys must differ."""
        token, data = show(self._tokenizer, token_id)
        if data is None or data == token.encode():
            return token
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def whole_completion(chunks: Sequence[CompletionChoice]) -> CompletionChoice:
    """Joins all chunks of one choice."""
    given = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    logprobs = CompletionLogprobs(
        tokens=[token for each in given for token in each.tokens],
        token_logprobs=[number for each in given for number in each.token_logprobs],
        top_logprobs=[top for each in given for top in each.top_logprobs],
        text_offset=[offset for each in given for offset in each.text_offset],
    )
    return CompletionChoice(
        index=chunks[0].index,
        text="".join(chunk.text for chunk in chunks),
        logprobs=logprobs if given else None,
        finish_reason=chunks[-1].finish_reason,
        token_ids=_joined([chunk.token_ids for chunk in chunks]),
        prompt_token_ids=chunks[0].prompt_token_ids,
        routed_experts=joined_routes([chunk.routed_experts for chunk in chunks]),
        content_filter_results=chunks[-1].content_filter_results,
    )


def _joined(parts: Sequence[list[int] | UnsetType]) -> list[int] | UnsetType:
    """Returns all ids in order, nothing where they were not wanted."""
    given = [part for part in parts if not isinstance(part, UnsetType)]
    return [id_ for part in given for id_ in part] if given else UNSET


def _given(value: _T | UnsetType, otherwise: _T) -> _T:
    return otherwise if isinstance(value, UnsetType) else value
