import json
from typing import Any

from msgspec import UNSET

from puna.serve import stream
from puna.serve.messages_schema import BlockDelta, BlockStart, MessageDelta, MoreInput, TextContent, ToolUseContent
from puna.serve.messages_stream import GrowingMessage
from puna.serve.schema import ChatChunkChoice, Delta, FunctionCall, ToolCall


def chunk(finish: str | None = None, stopped: str | None = None, **delta: Any) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=0, delta=Delta(**delta), logprobs=None, finish_reason=finish, stop_reason=stopped or UNSET
    )


def calls(*names: str) -> list[ToolCall]:
    return [
        ToolCall(index=i, id=f"call_{i}", type="function", function=FunctionCall(name=name, arguments='{"x": [1]}'))
        for i, name in enumerate(names)
    ]


def grow(*chunks: ChatChunkChoice) -> tuple[GrowingMessage, list[Any]]:
    growing = GrowingMessage("msg_1", "m", stream.usage(7, 0))
    events = growing.open()
    for each in chunks:
        events += growing.push(each)
    return growing, events + growing.close(stream.usage(7, 3, 2))


def test_text_and_calls_become_blocks_in_their_order() -> None:
    growing, events = grow(
        chunk(role="assistant", content=""),
        chunk(content="I "),
        chunk(content="add."),
        chunk(tool_calls=calls("f", "g")),
        chunk("tool_calls", content=" So."),
    )
    assert growing.message.content == [
        TextContent(text="I add."),
        ToolUseContent(id="call_0", name="f", input={"x": [1]}),
        ToolUseContent(id="call_1", name="g", input={"x": [1]}),
        TextContent(text=" So."),
    ]
    assert growing.message.stop_reason == "tool_use"
    assert [event.index for event in events if isinstance(event, BlockStart)] == [0, 1, 2, 3]
    given = [event for event in events if isinstance(event, BlockDelta) and isinstance(event.delta, MoreInput)]
    assert [json.loads(event.delta.partial_json) for event in given] == [{"x": [1]}] * 2
    assert events[1].content_block == TextContent(text="")


def test_an_empty_answer_has_no_content_and_says_why_it_ended() -> None:
    growing, events = grow(chunk(role="assistant", content=""), chunk("stop", "\n"))
    assert (growing.message.content, growing.message.stop_sequence) == ([], "\n")
    assert isinstance(events[1], MessageDelta)
    assert (events[1].usage.input_tokens, events[1].usage.cache_read_input_tokens) == (5, 2)
    assert grow(chunk("content_filter"))[0].message.stop_reason == "refusal"
