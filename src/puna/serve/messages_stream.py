"""Chunks of a chat answer to the events of Anthropic's Messages API.

In: chunks, in order, and what they cost. Out: events, and the message that they amount to: streamed or not, an answer
is made of the same ones.
Not here: requests (`messages`), HTTP.

Source: Anthropic's API reference, streaming.
"""

import json
from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec
from msgspec import UnsetType

from puna.serve import messages_schema as shapes
from puna.serve.schema import ChatChunkChoice, ToolCall, Usage

_FINISHES: dict[str, shapes.StopReason] = {
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
}

_T = TypeVar("_T")


class GrowingMessage:
    """One answer. `message` is what it is so far, and whole once `close` was called."""

    def __init__(self, message_id: str, model: str, usage: Usage) -> None:
        self._content: list[shapes.TextContent | shapes.ToolUseContent] = []
        self._kind: Literal["text", "tool_use", ""] = ""  # of the block that is open
        self._text = ""  # of that block: text, or JSON
        self.message = shapes.Message(
            id=message_id,
            role="assistant",
            model=model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(usage),
        )
        self._finish = "stop"
        self._stopped: str | None = None

    def open(self) -> list[shapes.MessageEvent]:
        """Returns the first event."""
        return [shapes.MessageStart(message=self.message)]

    def push(self, chunk: ChatChunkChoice) -> list[shapes.MessageEvent]:
        """Returns the events of what is new."""
        events: list[shapes.MessageEvent] = []
        if text := _given(chunk.delta.content, ""):
            events += self._more_text(text)
        for call in _given(chunk.delta.tool_calls, []):
            events += self._more_call(call)
        self._finish = chunk.finish_reason or self._finish
        self._stopped = _given(chunk.stop_reason, None)
        return events

    def close(self, usage: Usage) -> list[shapes.MessageEvent]:
        """Returns the last events."""
        events = list(self._end_block())
        reason = _FINISHES.get(self._finish, "end_turn" if self._stopped is None else "stop_sequence")
        ending = shapes.Ending(stop_reason=reason, stop_sequence=self._stopped)
        counts = _usage(usage)
        self.message = msgspec.structs.replace(
            self.message, content=self._content, usage=counts, stop_reason=reason, stop_sequence=self._stopped
        )
        return [*events, shapes.MessageDelta(delta=ending, usage=counts), shapes.MessageStop()]

    def _more_text(self, text: str) -> Iterator[shapes.MessageEvent]:
        if self._kind != "text":
            yield from self._begin_block("text", shapes.TextContent(text=""))
        self._text += text
        yield shapes.BlockDelta(index=self._index, delta=shapes.MoreText(text=text))

    def _more_call(self, call: ToolCall) -> Iterator[shapes.MessageEvent]:
        """Yields the events of a call, which comes whole."""
        name, arguments = call.function.name, call.function.arguments
        yield from self._begin_block("tool_use", shapes.ToolUseContent(id=call.id, name=name, input={}))
        self._text = arguments
        yield shapes.BlockDelta(index=self._index, delta=shapes.MoreInput(partial_json=arguments))

    def _begin_block(
        self, kind: Literal["text", "tool_use"], block: shapes.TextContent | shapes.ToolUseContent
    ) -> Iterator[shapes.MessageEvent]:
        yield from self._end_block()
        self._kind, self._text = kind, ""
        self._content.append(block)
        yield shapes.BlockStart(index=self._index, content_block=block)

    def _end_block(self) -> Iterator[shapes.MessageEvent]:
        if not self._kind:
            return
        block = self._content[-1]
        if isinstance(block, shapes.TextContent):
            self._content[-1] = shapes.TextContent(text=self._text)
        else:
            self._content[-1] = msgspec.structs.replace(block, input=json.loads(self._text))
        self._kind = ""
        yield shapes.BlockStop(index=self._index)

    @property
    def _index(self) -> int:
        return len(self._content) - 1


def _usage(usage: Usage) -> shapes.MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return shapes.MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _given(value: _T | UnsetType, otherwise: _T) -> _T:
    return otherwise if isinstance(value, UnsetType) else value
