import base64
import io
import json
from typing import Any

import msgspec
import pytest

from puna.chat import Assistant
from puna.serve import messages
from puna.serve.messages_schema import CountRequest, MessagesRequest
from tests.serve.conftest import MODEL, Running, picture

anthropic = pytest.importorskip("anthropic")

HELLO: Any = [{"role": "user", "content": "Hello"}]
ADD = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
ASKED = {"model": MODEL, "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def claude(running: Running) -> Any:
    return anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0, timeout=120)


def image() -> dict[str, Any]:
    buffer = io.BytesIO()
    picture().save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def create(claude: Any, **fields: Any) -> Any:
    asked = {"model": MODEL, "max_tokens": 8, "messages": HELLO} | fields
    extra = {"temperature": 0} | asked.pop("extra_body", {})
    return claude.messages.create(**asked, extra_body=extra)


def test_a_message_is_what_chat_answers(assistant: Assistant, claude: Any) -> None:
    content = [image(), {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}}]
    for asked, given in (
        ({"messages": HELLO}, HELLO),
        ({"messages": HELLO, "system": "Be short."}, [{"role": "system", "content": "Be short."}, *HELLO]),
        (
            {"messages": [{"role": "user", "content": content}]},
            [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}],
        ),
    ):
        expected = assistant.respond(given, temperature=0.0, max_new_tokens=8)
        message = create(claude, **asked)
        assert "".join(block.text for block in message.content) == expected.answers[0].text
        assert (message.stop_reason, message.stop_sequence, message.model) == ("max_tokens", None, MODEL)
        usage = message.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == expected.usage.prompt_tokens
        assert usage.output_tokens == 8
        counted = claude.messages.count_tokens(model=MODEL, **asked)
        assert counted.input_tokens == expected.usage.prompt_tokens


def test_a_stream_has_the_events_in_order_and_amounts_to_the_message(running: Running, claude: Any) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=8, messages=HELLO, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = create(claude)
    assert [block.text for block in final.content] == [block.text for block in whole.content] == [text]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    reply = running.post("/v1/messages", ASKED | {"messages": HELLO, "stream": True})
    events = [part.split(b"\ndata: ") for part in reply.body.removesuffix(b"\n\n").split(b"\n\n")]
    names = [name.removeprefix(b"event: ").decode() for name, _ in events]
    assert names == [json.loads(data)["type"] for _, data in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_the_stop_sequence_that_ended_an_answer_is_named(claude: Any) -> None:
    text = create(claude, max_tokens=40).content[0].text
    stop = text[5:8]
    message = create(claude, max_tokens=40, stop_sequences=["never", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]


def test_calls_and_their_results_become_turns_of_chat() -> None:
    turns = [
        {"role": "user", "content": "2 + 3?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I add."},
                {"type": "tool_use", "id": "a", "name": "add", "input": {"x": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "5"}, image()]},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    document = ASKED | {"messages": turns, "tools": [ADD], "tool_choice": {"type": "tool", "name": "add"}}
    request, names = messages.chat_request(msgspec.convert(document, MessagesRequest))
    assert [message["role"] for message in request.messages] == ["user", "assistant", "tool", "tool", "user"]
    _, call, failed, gave, said = request.messages
    assert call["tool_calls"][0] == {
        "id": "a",
        "type": "function",
        "function": {"name": "add", "arguments": {"x": 2}},
    }
    assert [part["text"] for part in failed["content"]] == ["Error: ", "no"]
    assert (failed["tool_call_id"], gave["tool_call_id"]) == ("a", "b")
    assert gave["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert said["content"] == [{"type": "text", "text": "So?"}]
    assert names["messages[4].content[0]"] == "messages[2].content[2]"
    assert names["messages[3].content[1].image_url"] == "messages[2].content[1].content[1].source"
    assert request.tool_choice == {"type": "function", "function": {"name": "add"}}
    assert request.tools == [
        {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    ]


@pytest.mark.parametrize(
    ("given", "choice", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
    ],
)
def test_tool_choice_becomes_chats(given: dict[str, Any], choice: str, parallel: bool | None) -> None:
    asked = msgspec.convert({"model": MODEL, "messages": HELLO, "tools": [ADD], "tool_choice": given}, CountRequest)
    request, _ = messages.chat_request(asked)
    assert (request.tool_choice, request.parallel_tool_calls) == (choice, parallel)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"messages": []}, "messages is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop_sequences": [""]}, "stop_sequences has a string"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"extra_body": {"container": "x"}}, "container"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tools": [ADD | {"name": "a b"}]}, "tool name"),
        ({"messages": [{"role": "king", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, r"messages\[0\].content\[0\].type"),
        (
            {"messages": [{"role": "user", "content": [image() | {"source": {"type": "url", "url": "file:///x"}}]}]},
            r"messages\[0\].content\[0\].source.url",
        ),
    ],
)
def test_what_is_refused_is_refused_in_anthropics_shape(claude: Any, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=problem) as refused:
        create(claude, **fields)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"


def test_another_model_a_wrong_key_and_a_wrong_method_answer_in_the_same_shape(assistant: Assistant) -> None:
    server = Running(assistant, keys=("sesame",))
    claude = anthropic.Anthropic(base_url=server.url, api_key="sesame", max_retries=0)
    assert create(claude).role == "assistant"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.AuthenticationError):
        create(anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0))
    assert server.get("/v1/messages", {"x-api-key": "sesame"}).document["type"] == "error"
    server.stop()


def test_what_fails_within_a_stream_is_an_event(assistant: Assistant, claude: Any) -> None:
    norm = assistant.model.norm.weight
    sound = norm.clone()
    norm.fill_(float("nan"))
    try:
        with pytest.raises(anthropic.APIStatusError, match="server's log"):
            list(create(claude, stream=True))
    finally:
        norm.copy_(sound)
