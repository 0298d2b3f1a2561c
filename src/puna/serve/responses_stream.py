"""Chunks of a chat answer to the events of OpenAI's Responses API.

In: chunks, in order, and what they cost. Out: numbered events, and the response that they amount to: streamed or
not, an answer is made of the same ones.
Not here: requests (`responses`), HTTP.

Source: OpenAI's API reference, streaming events.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UnsetType

from puna.serve import responses_events as shapes
from puna.serve.responses_schema import Reasoning, ResponsesRequest, Status, TextFormat, TextOptions
from puna.serve.schema import ChatChunkChoice, TokenLogprob, ToolCall, TopLogprob, Usage

_INCOMPLETE: dict[str, Any] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_T = TypeVar("_T")


class GrowingResponse:
    """One answer. `response` is what it is so far, and whole once `close` was called. `new_id` names items."""

    def __init__(
        self,
        asked: ResponsesRequest,
        response_id: str,
        *,
        model: str,
        clock: Callable[[], float],
        new_id: Callable[[str], str],
    ) -> None:
        self.response = _empty(asked, response_id, model, int(clock()))
        self._clock = clock
        self._new_id = new_id
        self._n_events = 0
        self._output: list[shapes.OutputItem] = []
        self._is_open = False  # whether the last one is text that goes on
        self._pieces: list[str] = []  # of that text
        self._logprobs: list[shapes.OutputLogprob] = []
        self._finish = "stop"

    def open(self) -> list[shapes.Numbered]:
        """Returns the first events."""
        return [self._event(kind, response=self.response) for kind in (shapes.Created, shapes.InProgress)]

    def push(self, chunk: ChatChunkChoice) -> list[shapes.Numbered]:
        """Returns the events of what is new."""
        logprobs = [_logprob(entry) for entry in chunk.logprobs.content] if chunk.logprobs else []
        text, events = _given(chunk.delta.content, ""), []
        self._finish = chunk.finish_reason or self._finish
        if text or (logprobs and not self._has_calls):
            events += self._more_text(text, logprobs)
        for call in _given(chunk.delta.tool_calls, []):
            events += self._more_call(call)
        return events

    def close(self, usage: Usage) -> list[shapes.Numbered]:
        """Returns the last events."""
        events = [] if self._output else self._more_text("", [])
        reason = _INCOMPLETE.get(self._finish)
        events += self._end_text("completed" if reason is None else "incomplete")
        self.response = msgspec.structs.replace(
            self.response,
            status="completed" if reason is None else "incomplete",
            completed_at=int(self._clock()) if reason is None else None,
            incomplete_details=None if reason is None else shapes.IncompleteDetails(reason=reason),
            output=self._output,
            usage=_usage(usage),
        )
        return [*events, self._event(shapes.Completed if reason is None else shapes.Incomplete, response=self.response)]

    def fail(self, status: int, message: str) -> list[shapes.Numbered]:
        """Returns the last event of an answer that was ended by what would otherwise have had `status`."""
        error = shapes.ResponseError(code="server_error" if status >= 500 else "invalid_prompt", message=message)
        self.response = msgspec.structs.replace(self.response, status="failed", error=error)
        return [self._event(shapes.Failed, response=self.response)]

    def _more_text(self, text: str, logprobs: list[shapes.OutputLogprob]) -> list[shapes.Numbered]:
        events: list[shapes.Numbered] = []
        if not self._is_open:
            item = shapes.OutputMessage(id=self._new_id("msg_"), status="in_progress", role="assistant", content=[])
            events = self._begin(item)
            events.append(self._event(shapes.PartAdded, **self._part, part=_text("", [])))
            self._is_open, self._pieces, self._logprobs = True, [], []
        self._pieces.append(text)
        self._logprobs += logprobs
        if text or logprobs:
            events.append(self._event(shapes.TextDelta, **self._part, delta=text, logprobs=logprobs))
        return events

    def _more_call(self, call: ToolCall) -> list[shapes.Numbered]:
        """Returns the events of a call, which comes whole."""
        name, arguments = call.function.name, call.function.arguments
        begun = shapes.OutputCall(
            id=self._new_id("fc_"), status="in_progress", call_id=call.id, name=name, arguments=""
        )
        return [
            *self._end_text("completed"),
            *self._begin(begun),
            self._event(shapes.ArgumentsDelta, **self._item, delta=arguments),
            self._event(shapes.ArgumentsDone, **self._item, name=name, arguments=arguments),
            self._end(msgspec.structs.replace(begun, status="completed", arguments=arguments)),
        ]

    def _end_text(self, status: Status) -> list[shapes.Numbered]:
        if not self._is_open:
            return []
        self._is_open = False
        whole, begun = "".join(self._pieces), self._output[-1]
        part = _text(whole, self._logprobs)
        return [
            self._event(shapes.TextDone, **self._part, text=whole, logprobs=self._logprobs),
            self._event(shapes.PartDone, **self._part, part=part),
            self._end(msgspec.structs.replace(begun, status=status, content=[part])),
        ]

    def _begin(self, item: shapes.OutputItem) -> list[shapes.Numbered]:
        self._output.append(item)
        return [self._event(shapes.ItemAdded, output_index=len(self._output) - 1, item=item)]

    def _end(self, item: shapes.OutputItem) -> shapes.Numbered:
        self._output[-1] = item
        return self._event(shapes.ItemDone, output_index=len(self._output) - 1, item=item)

    @property
    def _has_calls(self) -> bool:
        return any(isinstance(item, shapes.OutputCall) for item in self._output)

    @property
    def _item(self) -> dict[str, Any]:
        return {"item_id": self._output[-1].id, "output_index": len(self._output) - 1}

    @property
    def _part(self) -> dict[str, Any]:
        return self._item | {"content_index": 0}

    def _event(self, kind: type[shapes.Numbered], **fields: Any) -> shapes.Numbered:
        self._n_events += 1
        return kind(sequence_number=self._n_events - 1, **fields)


def _empty(asked: ResponsesRequest, response_id: str, model: str, created_at: int) -> shapes.Response:
    return shapes.Response(
        id=response_id,
        object="response",
        created_at=created_at,
        completed_at=None,
        status="in_progress",
        error=None,
        incomplete_details=None,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        model=model,
        output=[],
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        temperature=asked.temperature,
        tool_choice=asked.tool_choice or "auto",
        tools=asked.tools or [],
        top_logprobs=asked.top_logprobs or 0,
        top_p=asked.top_p,
        text=asked.text if asked.text and asked.text.format else TextOptions(format=TextFormat()),
        usage=None,
        metadata=asked.metadata or {},
        reasoning=Reasoning(),
        user=asked.user,
        safety_identifier=asked.safety_identifier,
        prompt_cache_key=asked.prompt_cache_key,
    )


def _text(text: str, logprobs: list[shapes.OutputLogprob]) -> shapes.OutputText:
    return shapes.OutputText(text=text, annotations=[], logprobs=logprobs)


def _logprob(entry: TokenLogprob) -> shapes.OutputLogprob:
    top = [_top(each) for each in entry.top_logprobs]
    return shapes.OutputLogprob(token=entry.token, bytes=entry.bytes or [], logprob=entry.logprob, top_logprobs=top)


def _top(entry: TopLogprob) -> shapes.OutputTop:
    return shapes.OutputTop(token=entry.token, bytes=entry.bytes or [], logprob=entry.logprob)


def _usage(usage: Usage) -> shapes.ResponseUsage:
    return shapes.ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=shapes.InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=shapes.OutputTokensDetails(reasoning_tokens=0),
        total_tokens=usage.total_tokens,
    )


def _given(value: _T | UnsetType, otherwise: _T) -> _T:
    return otherwise if isinstance(value, UnsetType) else value
