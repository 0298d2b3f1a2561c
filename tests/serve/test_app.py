import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.chat import Assistant
from puna.serve.app import Listener
from tests.reference.tiny import write_tiny_checkpoint
from tests.serve.conftest import CONTEXT_LEN, MODEL, PATIENCE_SECONDS, Running, data_url, picture

openai = pytest.importorskip("openai")

HELLO: Any = [{"role": "user", "content": "Hello"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
ONE_CALL = {"parallel_tool_calls": False}
JSON_STYLE = {"tool_choice": "required", "tool_style": "json", "max_calls": 1}
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 8}


NUMBERS = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
WORD = {"enum": ["x", "y"]}
CALLED = {"type": "function", "function": {"name": "add", "parameters": NUMBERS}}
SUB = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
DRAWN = {"model": MODEL, "messages": HELLO, "temperature": 0.3, "seed": 1, "max_tokens": 60}


def chat(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(**GREEDY | {"messages": HELLO} | fields)


def asking(color: str = "red") -> Any:
    link = {"type": "image_url", "image_url": {"url": data_url(picture(color))}}
    return [{"role": "user", "content": [link, {"type": "text", "text": "What?"}]}]


@pytest.mark.parametrize(
    "fields", [{}, {"messages": asking()}, {"tools": [ADD]}, {"stop": ["0"]}, {"max_tokens": 40}, {"n": 3}]
)
def test_greedy_chat_over_http_equals_the_assistant_streamed_or_not(
    assistant: Assistant, client: Any, fields: dict[str, Any]
) -> None:
    asked = GREEDY | {"messages": HELLO} | fields
    message = assistant.chat(
        asked["messages"],
        asked.get("tools", ()),
        temperature=0.0,
        max_new_tokens=asked["max_tokens"],
        stop=asked.get("stop", ()),
    )
    whole = chat(client, **fields)
    assert whole.object == "chat.completion" and whole.model == MODEL
    assert [choice.message.content for choice in whole.choices] == [message.text] * asked.get("n", 1)  # type: ignore[union-attr]
    streamed: dict[int, str] = {}
    reasons = {}
    for chunk in chat(client, stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert list(streamed.values()) == [choice.message.content for choice in whole.choices]
    assert list(reasons.values()) == [choice.finish_reason for choice in whole.choices]


def test_a_stream_has_the_events_that_clients_expect(running: Running) -> None:
    asked = GREEDY | {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    reply = running.post("/v1/chat/completions", asked)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = reply.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    first, *middle, last, usage = [json.loads(each.removeprefix(b"data: ")) for each in events]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in each["choices"][0]["delta"] for each in middle)
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 8
    assert {(each["id"], each["object"], each["model"]) for each in (first, *middle, last, usage)} == {
        (first["id"], "chat.completion.chunk", MODEL)
    }
    assert all(each["usage"] is None for each in (first, *middle, last))


@pytest.fixture(scope="module")
def seldom(assistant: Assistant) -> Iterator[Running]:
    """A server that tells the first token of a stream, and then nothing before the end."""
    server = Running(assistant, events_per_second=0.001)
    yield server
    server.stop()


def assert_same_tokens(entries: list[Any], expected: list[Any]) -> None:
    """The same tokens with the same log-probabilities, as far as another batch rounds alike."""
    assert len(entries) == len(expected)
    for mine, theirs in zip(entries, expected, strict=True):
        for each, other in zip((mine, *mine["top_logprobs"]), (theirs, *theirs["top_logprobs"]), strict=True):
            assert (each["token"], each["bytes"]) == (other["token"], other["bytes"])
            assert each["logprob"] == pytest.approx(other["logprob"], abs=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 40},
        {"stop": ["0"], "n": 2, "temperature": 1.5, "seed": 3, "max_tokens": 40},
        {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "return_routed_experts": True},
        {"tools": [CALLED], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60},
        {"guided_regex": "[ab]{3}c"},
    ],
)
def test_streams_that_are_told_seldom_say_what_others_do(
    running: Running, seldom: Running, fields: dict[str, Any]
) -> None:
    asked = GREEDY | {"messages": HELLO} | fields
    whole = running.post("/v1/chat/completions", asked).document
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    *events, _, _ = seldom.post("/v1/chat/completions", asked).body.split(b"\n\n")
    *chunks, last = [json.loads(each.removeprefix(b"data: ")) for each in events]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len(chunks) <= 3 * fields.get("n", 1)  # who speaks, the first token, all that follows
    for expected in whole["choices"]:
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == expected["index"]]
        texts = [choice["delta"].get("content") or "" for choice in mine]
        assert "".join(texts) == (expected["message"]["content"] or "")
        assert mine[-1]["finish_reason"] == expected["finish_reason"]
        calls = [call["function"] for choice in mine for call in choice["delta"].get("tool_calls", [])]
        assert calls == [call["function"] for call in expected["message"].get("tool_calls", [])]
        entries = [entry for choice in mine for entry in (choice["logprobs"] or {"content": []})["content"]]
        assert_same_tokens(entries, (expected["logprobs"] or {"content": []})["content"])
        for name, of_tokens in (("token_ids", lambda x: x), ("routed_experts", lambda x: x["tokens"])):
            parts = [each for choice in mine if name in choice for each in of_tokens(choice[name])]
            assert parts == (of_tokens(expected[name]) if name in expected else [])


def test_usage_says_how_much_of_the_prompts_was_remembered(running: Running, client: Any) -> None:
    texts = ["how much is remembered of this " * 2, "and of another one, is it all? " * 2]
    first, again = (client.completions.create(prompt=texts, n=2, **GREEDY).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert first.prompt_tokens - 2 * 9 <= again.prompt_tokens_details.cached_tokens < first.prompt_tokens
    asked = GREEDY | {"prompt": texts, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *_, last, _, _ = running.post("/v1/completions", asked).body.split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["usage"] == again.to_dict()


def test_usage_may_come_with_every_chunk(client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in chat(client, stream=True, stream_options=options)]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == 8


def test_a_seed_gives_the_same_text_whatever_else_runs(assistant: Assistant, client: Any) -> None:
    drawn = {"temperature": 1.5, "seed": 5, "n": 2}
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(chat, client, **drawn | {"seed": seed}) for seed in (5, 1, 5, 2, 5, 3)]
        texts = [[choice.message.content for choice in future.result().choices] for future in futures]
    expected = [m.text for m in assistant.chat(HELLO, temperature=1.5, seed=5, n=2, max_new_tokens=8)]  # type: ignore[union-attr]
    assert texts[0] == texts[2] == texts[4] == expected != texts[1]


def test_sixteen_at_a_time_get_what_each_gets_alone(client: Any) -> None:
    asked: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "x" * (1 + 7 * i)}]} for i in range(10)]
    asked += [{"messages": asking("blue")}, {"messages": asking()}, {"messages": asking("green")}]
    asked += [{"tools": [CALLED], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 40}]
    asked += [{"extra_body": {"guided_choice": ["yes", "no"]}}, {"logprobs": True}]
    alone = [chat(client, **fields).choices[0].message for fields in asked]
    with ThreadPoolExecutor(16) as pool:
        together = [each.choices[0].message for each in pool.map(lambda fields: chat(client, **fields), asked)]
    assert [each.content for each in together] == [each.content for each in alone]
    (one,), (other,) = together[13].tool_calls, alone[13].tool_calls
    assert one.function == other.function


def test_log_probabilities_of_chat_are_the_engines(assistant: Assistant, client: Any) -> None:
    entries = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    answer = assistant.respond(HELLO, temperature=0.0, max_new_tokens=8, logprobs=3).answers[0]
    assert [entry.logprob for entry in entries] == pytest.approx([given.chosen for given in answer.logprobs])
    assert bytes(byte for entry in entries for byte in entry.bytes or []) == assistant.tokenizer.decode_bytes(
        answer.ids
    )
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    chunks = list(chat(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert streamed == entries


def streamed(running: Running, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the message that a stream adds up to, and why it ended."""
    content, calls, reason = "", [], None
    body = running.post("/v1/chat/completions", asked | {"stream": True}).body
    for line in body.split(b"\n\n")[:-2]:
        (choice,) = json.loads(line.removeprefix(b"data: "))["choices"]
        content += choice["delta"].get("content", "")
        calls += choice["delta"].get("tool_calls", [])
        reason = choice["finish_reason"] or reason
    assert [call["index"] for call in calls] == list(range(len(calls)))
    return {"content": content, "calls": [call["function"] for call in calls], "reason": reason}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": "required", "max_calls": 1}),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, {"tool_choice": "add", "max_calls": 1}),
        (
            {"tools": [CALLED, SUB], "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}} | ONE_CALL,
            {"tool_choice": "required", "max_calls": 1},
        ),
        ({"chat_template_kwargs": {"tool_style": "json"}, "tool_choice": "required"} | ONE_CALL, JSON_STYLE),
    ],
)
def test_forced_calls_over_http_are_the_assistants_streamed_or_not(
    assistant: Assistant, running: Running, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    asked = DRAWN | {"tools": [CALLED]} | fields
    message: Any = assistant.chat(HELLO, [CALLED], temperature=0.3, seed=1, max_new_tokens=60, **options)
    choice = running.post("/v1/chat/completions", asked).document["choices"][0]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        (call.name, call.arguments) for call in message.tool_calls
    ]
    assert calls and choice["finish_reason"] == "tool_calls"
    assert all(isinstance(json.loads(call["arguments"])["a"], int) for call in calls)
    assert streamed(running, asked) == {"content": "", "calls": calls, "reason": "tool_calls"}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": WORD}}}, {"json_schema": WORD}),
        ({"guided_json": json.dumps(WORD)}, {"json_schema": WORD}),
        ({"structured_outputs": {"regex": "[ab]{3}c"}}, {"regex": "[ab]{3}c"}),
        ({"guided_choice": ["yes", "no"]}, {"choice": ["yes", "no"]}),
        ({"guided_grammar": 'start: "a" "b"+ "c"'}, {"grammar": 'start: "a" "b"+ "c"'}),
        ({"tools": [{"type": "function", "function": CALLED["function"] | {"strict": True}}]}, None),
    ],
)
def test_what_an_answer_must_look_like_it_does_as_in_the_assistant(
    assistant: Assistant, running: Running, fields: dict[str, Any], options: dict[str, Any] | None
) -> None:
    tools = fields.get("tools", ())
    message: Any = assistant.chat(HELLO, tools, temperature=0.3, seed=1, max_new_tokens=60, **options or {})
    choice = running.post("/v1/chat/completions", DRAWN | fields).document["choices"][0]
    assert (choice["message"]["content"] or "") == message.text
    assert streamed(running, DRAWN | fields)["content"] == message.text
    if options is not None:
        assert choice["finish_reason"] == "stop"
    if options is not None and "json_schema" in options:
        assert json.loads(message.text) in WORD["enum"]


def test_any_json_object_will_do_where_one_is_asked_for(running: Running) -> None:
    asked = DRAWN | {"response_format": {"type": "json_object"}, "temperature": 1, "max_tokens": 40}
    choice = running.post("/v1/chat/completions", asked).document["choices"][0]
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


def test_fields_by_token_id_are_honoured(assistant: Assistant, running: Running) -> None:
    (a,), (b,) = (assistant.tokenizer.encode(each) for each in "ab")

    def complete(**fields: Any) -> Any:
        return running.post("/v1/completions", GREEDY | {"prompt": "x"} | fields).document["choices"][0]

    assert complete(logit_bias={str(a): 100})["text"] == "a" * 8
    assert set(complete(allowed_token_ids=[a, b], temperature=2)["text"]) <= {"a", "b"}
    forced = {"logit_bias": {str(a): 100}, "allowed_token_ids": [a, b]}
    assert complete(**forced, stop_token_ids=[a])["finish_reason"] == "stop"
    assert complete(**forced, stop_token_ids=[a], min_tokens=3)["text"] == "bbba"
    assert complete(**forced, stop=["aa"], include_stop_str_in_output=True)["text"] == "aa"
    eot = assistant.tokenizer.special["<|eot|>"]
    endless = {"allowed_token_ids": [eot], "ignore_eos": True}
    assert complete(**endless, skip_special_tokens=False)["text"] == "<|eot|>" * 8
    assert complete(allowed_token_ids=[eot])["finish_reason"] == "stop"
    assert complete(prompt="ab", echo=True, max_tokens=0, add_special_tokens=False, logprobs=0)["logprobs"][
        "tokens"
    ] == ["a", "b"]


def test_the_last_message_can_be_continued(assistant: Assistant, running: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    fields = {"continue_final_message": True, "return_token_ids": True}
    document = running.post("/v1/chat/completions", GREEDY | {"messages": messages} | fields).document
    ids = [*assistant.prompt(HELLO).ids, *assistant.tokenizer.encode("Once upon")]
    assert document["prompt_token_ids"] == ids
    plain = running.post("/v1/completions", GREEDY | {"prompt": ids}).document
    assert document["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


def test_ids_and_experts_come_along_where_they_are_wanted(assistant: Assistant, running: Running) -> None:
    wanted = {"return_token_ids": True, "return_routed_experts": True, "request_id": "mine-1"}
    chatting = running.post("/v1/chat/completions", GREEDY | wanted | {"messages": HELLO}).document
    completing = running.post("/v1/completions", GREEDY | wanted | {"prompt": ["experts, experts"]}).document
    assert (chatting["id"], completing["id"]) == ("chatcmpl-mine-1", "cmpl-mine-1")
    for document, prompt_ids in ((chatting, chatting["prompt_token_ids"]), (completing, None)):
        choice = document["choices"][0]
        assert prompt_ids in (None, assistant.prompt(HELLO).ids) and len(choice["token_ids"]) == 8
        routes, text = choice["routed_experts"], assistant.config.text
        assert (routes["layers"], routes["n_experts"]) == (sorted(text.moe_layers), text.n_experts)
        assert [len(token) for token in routes["tokens"]] == [len(text.moe_layers)] * 8
        read = document["usage"]["prompt_tokens"] - document["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert [sum(of_layer) for of_layer in routes["prompt_counts"]] == [read * text.n_active_experts] * len(
            text.moe_layers
        )
    reply = running.post("/v1/chat/completions", GREEDY | wanted | {"messages": HELLO, "stream": True})
    chunks = [json.loads(each[6:]) for each in reply.body.split(b"\n\n")[:-2]]
    assert chunks[0]["prompt_token_ids"] == chatting["prompt_token_ids"]
    ids = [id_ for chunk in chunks for id_ in chunk["choices"][0].get("token_ids", [])]
    tokens = [t for chunk in chunks for t in chunk["choices"][0].get("routed_experts", {"tokens": []})["tokens"]]
    assert ids == chatting["choices"][0]["token_ids"]
    assert tokens == chatting["choices"][0]["routed_experts"]["tokens"]


def test_completions_take_texts_and_ids_one_or_several(assistant: Assistant, client: Any) -> None:
    texts = ["Once", "upon a"]
    expected = [assistant.complete(text, temperature=0.0, max_new_tokens=8) for text in texts]
    ids = [assistant.text_prompt(text).ids for text in texts]
    for prompt in (texts, ids):
        completion = client.completions.create(prompt=prompt, n=2, **GREEDY)
        assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in completion.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert completion.usage.prompt_tokens == sum(map(len, ids))
    assert client.completions.create(prompt=ids[0], **GREEDY).choices[0].text == expected[0]
    chunks = list(client.completions.create(prompt=texts[1], stream=True, echo=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[1] + str(expected[1])
    assert (chunks[-1].object, chunks[-1].choices[0].finish_reason) == ("text_completion", "length")


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echoed_log_probabilities_score_a_text_as_evaluations_need_it(
    assistant: Assistant, running: Running, max_tokens: int
) -> None:
    """The body that lm-eval sends; it needs an entry per token, and the arg-max where the token is one."""
    ids = [assistant.text_prompt(text).ids for text in ("Once upon a time", "x")]
    asked = {"model": MODEL, "prompt": ids, "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "seed": 1}
    choices = running.post("/v1/completions", asked | {"echo": True}).document["choices"]
    for prompt, choice in zip(ids, sorted(choices, key=lambda each: each["index"]), strict=True):
        logprobs = assistant.logits(prompt).log_softmax(dim=-1)
        given = choice["logprobs"]
        assert len(given["token_logprobs"]) == len(given["top_logprobs"]) == len(prompt) + max_tokens
        assert given["token_logprobs"][0] is None and given["top_logprobs"][0] is None
        expected = [logprobs[i, id_].item() for i, id_ in enumerate(prompt[1:])]
        # Float32 sums over caches of different shapes.
        assert given["token_logprobs"][1 : len(prompt)] == pytest.approx(expected, abs=1e-4)
        for i, top in enumerate(given["top_logprobs"][1:]):
            assert max(top.values()) == pytest.approx(logprobs[i].max().item(), abs=1e-4)


def test_tokens_go_there_and_back(assistant: Assistant, running: Running) -> None:
    asked = {"prompt": "Straße <|eot|>", "add_special_tokens": False, "return_token_strs": True}
    reply = running.post("/tokenize", asked).document
    assert reply["tokens"] == assistant.tokenizer.encode("Straße <|eot|>")
    assert (reply["count"], reply["max_model_len"]) == (len(reply["token_strs"]), CONTEXT_LEN)
    assert running.post("/detokenize", {"tokens": reply["tokens"]}).document == {"prompt": "Straße <|eot|>"}
    assert running.post("/detokenize", {"tokens": [10**9]}).status == 400
    info = running.get("/tokenizer_info").document
    assert (info["bos_token"], info["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")
    whole = running.post("/tokenize", {"messages": HELLO}).document
    assert whole["tokens"] == assistant.prompt(HELLO).ids


def test_models_are_listed_and_others_do_not_exist(running: Running, client: Any) -> None:
    assert [(model.id, model.max_model_len) for model in client.models.list()] == [(MODEL, CONTEXT_LEN)]
    assert client.models.retrieve(MODEL).owned_by == "puna"
    for ask in (lambda: client.models.retrieve("org/other"), lambda: chat(client, model="other")):
        with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
            ask()
        assert missing.value.code == "model_not_found"
    assert running.get("/version").document["version"]
    assert running.get("/health").status == running.get("/ready").status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 1000}, "n"),
        ({"max_tokens": True}, "max_tokens"),
        ({"wishes": 3}, "wishes"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, None),
    ],
)
def test_mistakes_are_400_in_openais_shape(running: Running, body: Any, param: str | None) -> None:
    asked = body if isinstance(body, bytes) else GREEDY | {"messages": HELLO} | body
    reply = running.post("/v1/chat/completions", asked)
    assert reply.status == 400, reply.body
    error = reply.document["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["message"] and (param is None or error["param"] == param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("messages", "prompt", "tools", "tool_choice", "n", "stop", "seed", "temperature", "top_p", "top_k", "min_p")
FIELDS += ("max_tokens", "logprobs", "top_logprobs", "stream_options", "response_format", "logit_bias", "echo", "model")


@given(path=st.sampled_from(["chat/completions", "completions"]), field=st.sampled_from(FIELDS), value=JSON)
@settings(max_examples=60, deadline=None)
def test_nothing_that_a_field_may_hold_is_a_fault_of_ours(running: Running, path: str, field: str, value: Any) -> None:
    content = {"messages": HELLO} if path.startswith("chat") else {"prompt": "ab"}
    asked = GREEDY | {"max_tokens": 1} | content | {field: value}
    reply = running.post(f"/v1/{path}", asked)
    assert reply.status in (200, 400, 404), reply.body
    assert reply.status == 200 or reply.document["error"]["message"]


def test_other_paths_and_methods_answer_in_the_same_shape(running: Running) -> None:
    for path, status in (("/nothing", 404), ("/v1/chat/completions", 405)):
        reply = running.get(path)
        assert (reply.status, reply.document["error"]["param"]) == (status, None)


def test_a_context_that_is_too_small_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="context holds 2048") as refused:
        chat(client, max_tokens=CONTEXT_LEN)
    assert refused.value.code == "context_length_exceeded"


def test_a_fault_of_the_model_is_500_or_an_event_and_the_server_goes_on(
    assistant: Assistant, running: Running, client: Any
) -> None:
    norm = assistant.model.norm.weight
    sound = norm.clone()
    norm.fill_(float("nan"))
    try:
        with pytest.raises(openai.InternalServerError, match="server's log"):
            chat(client)
        with pytest.raises(openai.APIError, match="server's log"):
            list(chat(client, stream=True))
    finally:
        norm.copy_(sound)
    assert chat(client).choices[0].finish_reason == "length"
    assert running.get("/health").status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_model(running: Running, stream: bool) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO, "ignore_eos": True, "stream": stream, "n": 8}).encode()
    running.wait_until_idle()
    before = running.n_disconnects
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        running.wait_until_busy()
    running.wait_until(lambda: running.n_disconnects > before)
    running.wait_until_idle()


def test_metrics_count_what_was_done(running: Running, client: Any) -> None:
    chat(client, messages=asking())
    text = running.get("/metrics").body.decode()
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = f'{{model_name="{MODEL}"}}'
    running.wait_until_idle()
    assert float(counted[f"puna_num_requests_running{labels}"]) >= 0
    for name in ("generation_tokens_total", "image_tiles_total", "time_to_first_token_seconds_count"):
        assert float(counted[f"puna_{name}{labels}"]) > 0


@pytest.fixture(scope="module")
def strict(assistant: Assistant) -> Iterator[Running]:
    server = Running(assistant, keys=("first", "second"), max_open=2, max_body_bytes=5000)
    yield server
    server.stop()


def test_a_key_opens_everything_and_health_needs_none(strict: Running) -> None:
    for path in ("/v1/models", "/metrics", "/tokenizer_info", "/nothing"):
        for headers in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "first"},
            {"Authorization": "Bearer "},
        ):
            reply = strict.get(path, headers)
            assert (reply.status, reply.document["error"]["code"]) == (401, "invalid_api_key")
    for key in ("first", "second"):
        assert strict.get("/v1/models", {"Authorization": f"Bearer {key}"}).status == 200
    assert strict.get("/health").status == strict.get("/ready").status == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=strict.url + "/v1", api_key="wrong", max_retries=0).models.list()


def test_a_full_queue_asks_to_come_back(strict: Running) -> None:
    client = openai.OpenAI(base_url=strict.url + "/v1", api_key="first", max_retries=0)
    with chat(client, stream=True, max_tokens=1900, n=2, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as busy:
            chat(client)
        assert busy.value.response.headers["retry-after"] == "1"
    strict.wait_until_idle()
    assert chat(client).choices


def test_a_body_that_is_too_long_is_not_read(strict: Running) -> None:
    key = {"Authorization": "Bearer first"}
    assert strict.post("/tokenize", {"prompt": "x" * 6000}, key).status == 413
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    assert status_of(strict, head + chunk * 2) == 413  # no length announced: counted


def test_a_silent_connection_is_kept_for_longer_than_proxies_keep_theirs(running: Running) -> None:
    assert Listener(running.server, drain_seconds=1).config.timeout_keep_alive > 60


def test_a_body_that_is_too_slow_is_not_waited_for(assistant: Assistant) -> None:
    server = Running(assistant, body_seconds=0.1)
    assert status_of(server, b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{") == 408
    server.stop()


def status_of(server: Running, request: bytes) -> int:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(request)
        return int(connection.recv(100).split()[1])


def test_a_key_may_come_as_anthropics_clients_send_it(strict: Running) -> None:
    assert strict.get("/v1/models", {"X-Api-Key": "second"}).status == 200
    reply = strict.get("/v1/messages", {"X-Api-Key": "third"})
    assert (reply.status, reply.document["error"]["type"]) == (401, "authentication_error")
    assert reply.document["type"] == "error"


@pytest.fixture(scope="module")
def impatient(assistant: Assistant) -> Iterator[Running]:
    server = Running(assistant, request_seconds=0.2, origins=("https://chat.test",))
    yield server
    server.stop()


def test_an_answer_that_takes_too_long_is_ended_and_not_to_be_asked_again(impatient: Running) -> None:
    asked = {"model": MODEL, "messages": HELLO, "temperature": 2, "top_p": 1, "n": 16, "ignore_eos": True}
    reply = impatient.post("/v1/chat/completions", asked)
    assert (reply.status, reply.document["error"]["code"]) == (504, "aborted")
    assert reply.headers["x-should-retry"] == "false"
    body = impatient.post("/v1/chat/completions", asked | {"stream": True}).body
    *_, last = body.split(b"\n\n")[:-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "aborted"
    impatient.wait_until_idle()


def test_an_answer_that_nothing_may_begin_is_the_requests_fault(assistant: Assistant, running: Running) -> None:
    (letter,) = assistant.tokenizer.encode("a")
    asked = {"model": MODEL, "messages": HELLO, "guided_regex": "[0-9]+", "allowed_token_ids": [letter]}
    reply = running.post("/v1/chat/completions", asked)
    assert (reply.status, reply.document["error"]["code"]) == (400, "no_token_fits")


def test_web_pages_of_listed_origins_may_ask_and_others_may_not(impatient: Running, running: Running) -> None:
    def allowed(server: Running, origin: str) -> str | None:
        return server.get("/v1/models", {"Origin": origin}).headers.get("access-control-allow-origin")

    assert allowed(impatient, "https://chat.test") == "https://chat.test"
    assert allowed(impatient, "https://other.test") is allowed(running, "https://chat.test") is None


def test_going_down_refuses_new_work_and_finishes_the_old(assistant: Assistant) -> None:
    server = Running(assistant)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    old = iter(chat(client, stream=True, max_tokens=200, temperature=0))
    next(old)
    server.server.drain()
    assert server.get("/ready").status == 503 and server.get("/health").status == 200
    refused = server.post("/v1/chat/completions", GREEDY | {"messages": HELLO})
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert [chunk.choices[0].finish_reason for chunk in old][-1] in ("stop", "length")
    server.stop()


def test_the_command_serves_until_it_is_told_to_stop_and_finishes_what_runs(tmp_path: Path) -> None:
    folder, keys = write_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "keys"
    keys.write_text("# of the tests\nsesame\n", "utf-8")
    command = [sys.executable, "-m", "puna", "serve", str(folder), *"--device cpu --port 0 --guard off --json".split()]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--api-key-file", str(keys)], **pipes) as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        client = openai.OpenAI(base_url=document["url"], api_key="sesame", max_retries=0)
        secret: Any = [{"role": "user", "content": "confidential"}]
        drawn = {"temperature": 2, "top_p": 1, "max_tokens": 200, "messages": secret}
        streams = [iter(chat(client, stream=True, **drawn)) for _ in range(8)]
        for stream in streams:
            next(stream)
        threading.Timer(0.05, process.send_signal, [signal.SIGTERM]).start()
        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(lambda chunks: [chunk.choices[0].finish_reason for chunk in chunks][-1], streams))
        assert set(reasons) <= {"stop", "length"}
        output, log = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, document["model"], output) == (0, "tiny", "")
        assert '"status": 200' in log and not any(word in log for word in ("confidential", "sesame", "Traceback"))
