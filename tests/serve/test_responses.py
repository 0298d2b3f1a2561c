import json
from typing import Any

import msgspec
import pytest

from puna.chat import Assistant
from puna.serve import responses
from puna.serve.responses_schema import ResponsesRequest
from tests.serve.conftest import MODEL, Running, data_url, picture

openai = pytest.importorskip("openai")

ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
HELLO: Any = [{"role": "user", "content": "Hello"}]


def create(client: Any, **fields: Any) -> Any:
    return client.responses.create(
        **{"model": MODEL, "temperature": 0, "max_output_tokens": 8, "input": "Hello"} | fields
    )


def test_a_response_is_what_chat_answers(assistant: Assistant, client: Any) -> None:
    content = [
        {"type": "input_image", "image_url": data_url(picture()), "detail": "auto"},
        {"type": "input_text", "text": "What?"},
    ]
    for asked, given in (
        ({"input": "Hello"}, HELLO),
        ({"input": HELLO, "instructions": "Be short."}, [{"role": "system", "content": "Be short."}, *HELLO]),
        (
            {"input": [{"role": "user", "content": content}]},
            [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}],
        ),
    ):
        expected = assistant.respond(given, temperature=0.0, max_new_tokens=8)
        response = create(client, **asked)
        assert response.output_text == expected.answers[0].text
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.usage.input_tokens, response.usage.output_tokens) == (expected.usage.prompt_tokens, 8)
        assert (response.object, response.store, response.instructions) == (
            "response",
            False,
            asked.get("instructions"),
        )


def test_a_stream_has_the_events_in_order_and_amounts_to_the_response(running: Running, client: Any) -> None:
    whole = create(client, include=["message.output_text.logprobs"], top_logprobs=2)
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 8, "input": "Hello", "stream": True}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    body = running.post("/v1/responses", asked).body
    parts = [part.split(b"\ndata: ") for part in body.removesuffix(b"\n\n").split(b"\n\n")]
    events = [json.loads(data) for _, data in parts]
    assert [name.removeprefix(b"event: ").decode() for name, _ in parts] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == whole.output_text
    logprobs = [entry["logprob"] for event in deltas for entry in event["logprobs"]]
    assert logprobs == [entry.logprob for entry in whole.output[0].content[0].logprobs]
    last = events[-1]["response"]
    assert last["output"][0]["content"] == whole.to_dict()["output"][0]["content"]
    assert last["usage"]["total_tokens"] == whole.usage.total_tokens


def test_the_clients_own_stream_reads_ours(client: Any) -> None:
    whole = create(client, max_output_tokens=60, top_p=0.5, extra_body={"seed": 3}, temperature=2)
    with client.responses.stream(
        model=MODEL, input="Hello", max_output_tokens=60, temperature=2, top_p=0.5, extra_body={"seed": 3}
    ) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == whole.output_text


def test_items_become_turns_of_chat() -> None:
    items = [
        {"role": "developer", "content": "Add."},
        {"role": "user", "content": [{"type": "input_text", "text": "2 + 3?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I add.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "add", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "add", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "5"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "6"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
    ]
    fields = {"tools": [ADD], "tool_choice": {"type": "function", "name": "add"}, "instructions": "Hurry."}
    asked = msgspec.convert({"model": MODEL, "input": items} | fields, ResponsesRequest)
    request, names = responses.chat_request(asked)
    roles = [message["role"] for message in request.messages]
    assert roles == ["system", "developer", "user", "assistant", "tool", "tool", "assistant"]
    assert [call["id"] for call in request.messages[3]["tool_calls"]] == ["a", "b"]
    assert request.messages[3]["content"] == [{"type": "text", "text": "I add."}]
    assert (request.messages[4]["content"], request.messages[5]["tool_call_id"]) == ("5", "b")
    assert names["messages[3].tool_calls[1].function"] == "input[4]"
    assert request.tool_choice == {"type": "function", "function": {"name": "add"}}
    assert request.tools == [
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": False}}
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"format": {"type": "text"}}, {"type": "text"}),
        ({"format": {"type": "json_object"}}, {"type": "json_object"}),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
        ({"verbosity": "medium"}, None),
    ],
)
def test_text_format_becomes_chats_response_format(text: Any, expected: Any) -> None:
    asked = msgspec.convert({"model": MODEL, "input": "x", "text": text}, ResponsesRequest)
    assert responses.chat_request(asked)[0].response_format == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [ADD | {"name": "a b"}]}, None),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "reasoning", "id": "x", "summary": []}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]}, "input[0].arguments"),
    ],
)
def test_what_is_refused_names_the_field(client: Any, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, **fields)
    assert refused.value.param == param or param is None
    assert refused.value.type == "invalid_request_error"


def test_what_fails_within_a_stream_is_its_last_event(assistant: Assistant, client: Any) -> None:
    norm = assistant.model.norm.weight
    sound = norm.clone()
    norm.fill_(float("nan"))
    try:
        events = list(create(client, stream=True))
        with pytest.raises(openai.InternalServerError):
            create(client)
    finally:
        norm.copy_(sound)
    assert (events[-1].type, events[-1].response.error.code) == ("response.failed", "server_error")
