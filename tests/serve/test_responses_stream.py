import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from puna.serve import stream
from puna.serve.responses_events import OutputCall, OutputMessage
from puna.serve.responses_schema import ResponsesRequest
from puna.serve.responses_stream import GrowingResponse
from puna.serve.schema import ChatChunkChoice, Delta, FunctionCall, ToolCall


def chunk(finish: str | None = None, **delta: Any) -> ChatChunkChoice:
    return ChatChunkChoice(index=0, delta=Delta(**delta), logprobs=None, finish_reason=finish)


def call(i: int, arguments: str) -> ChatChunkChoice:
    function = FunctionCall(name="f", arguments=arguments)
    return chunk(tool_calls=[ToolCall(index=i, id=f"call_{i}", type="function", function=function)])


def grow(chunks: Sequence[ChatChunkChoice]) -> tuple[GrowingResponse, list[Any]]:
    counter = itertools.count()
    growing = GrowingResponse(
        ResponsesRequest(model="m", input="x"),
        "resp_1",
        model="m",
        clock=lambda: 5.0,
        new_id=lambda prefix: f"{prefix}{next(counter)}",
    )
    events = growing.open()
    for each in chunks:
        events += growing.push(each)
    return growing, events + growing.close(stream.usage(7, 3, 2))


def kinds(events: Sequence[Any]) -> list[str]:
    return [event.__struct_config__.tag.removeprefix("response.") for event in events]


def test_text_and_calls_become_items_in_their_order() -> None:
    growing, events = grow([chunk(content="I add."), call(0, '{"x": 1}'), call(1, "{}"), chunk("tool_calls")])
    message, first, second = growing.response.output
    assert isinstance(message, OutputMessage) and isinstance(first, OutputCall) and isinstance(second, OutputCall)
    assert (first.call_id, first.arguments, second.arguments) == ("call_0", '{"x": 1}', "{}")
    assert {item.status for item in growing.response.output} == {"completed"}
    assert (growing.response.status, growing.response.completed_at) == ("completed", 5)
    of_call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    of_text = ["output_text.delta", "output_text.done", "content_part.done", "output_item.done"]
    first_events = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds(events) == [*first_events, *of_text, *of_call, *of_call, "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_an_empty_answer_is_a_message_without_text() -> None:
    growing, events = grow([chunk(role="assistant", content=""), chunk("stop")])
    assert growing.response.output[0].content[0].text == ""  # type: ignore[union-attr]
    assert "output_text.delta" not in kinds(events) and kinds(events)[-1] == "completed"


def test_what_a_protection_ended_is_incomplete() -> None:
    growing, events = grow([chunk(content="I"), chunk("content_filter")])
    assert kinds(events)[-1] == "incomplete"
    assert growing.response.incomplete_details is not None
    assert growing.response.incomplete_details.reason == "content_filter"
    assert growing.response.output[0].status == "incomplete"
    assert grow([call(0, "{}"), chunk("length")])[0].response.output[0].status == "completed"


def test_what_ends_an_answer_on_the_way_is_told_as_its_kind() -> None:
    growing, _ = grow([chunk(content="I")])
    for status, code in ((500, "server_error"), (400, "invalid_prompt")):
        (event,) = growing.fail(status, "because")
        assert (kinds([event]), event.response.error.code) == (["failed"], code)  # type: ignore[attr-defined]


@given(st.lists(st.text(max_size=5) | st.just("CALL"), max_size=8), st.sampled_from(["stop", "length", "tool_calls"]))
def test_events_joined_are_the_response(pieces: list[str], finish: str) -> None:
    chunks = [call(i, '{"a": 1}') if piece == "CALL" else chunk(content=piece) for i, piece in enumerate(pieces)]
    growing, events = grow([*chunks, chunk(finish)])
    texts: dict[int, str] = {}
    for event in events:
        if hasattr(event, "delta"):
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
    done = {event.output_index: event.item for event in events if kinds([event]) == ["output_item.done"]}
    assert list(done.values()) == growing.response.output
    for index, item in done.items():
        whole = item.arguments if isinstance(item, OutputCall) else item.content[0].text
        assert texts.get(index, "") == whole
    assert msgspec.to_builtins(events[-1].response) == msgspec.to_builtins(growing.response)
