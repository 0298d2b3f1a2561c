import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.chat import Assistant, Piece
from puna.engine.request import TokenLogprobs
from puna.prompt.message import Tool
from puna.prompt.parse import parse
from puna.serve.schema import ChatChoice, ChatChunkChoice, CompletionChoice
from puna.serve.stream import GrowingChat, GrowingCompletion, event, show, usage, whole_chat, whole_completion

ADD = Tool("add", "", {})


def grow(assistant: Assistant, texts: Sequence[str], tools: Sequence[Tool] = (), most: int | None = None) -> ChatChoice:
    return whole_chat(chunks(assistant, texts, tools, most))


def chunks(
    assistant: Assistant, texts: Sequence[str], tools: Sequence[Tool] = (), most: int | None = None
) -> list[ChatChunkChoice]:
    growing = GrowingChat(0, assistant.tokenizer, tools, most_calls=most, new_call_id=lambda: "call_1")
    pieces = [Piece(0, text, 1, None, None) for text in texts[:-1]] + [Piece(0, texts[-1], 1, None, "stop")]
    return [growing.open(), *(chunk for piece in pieces if (chunk := growing.push(piece)) is not None)]


@given(
    text=st.text("[{<add(=1'\"}]> \nx", max_size=30)
    | st.sampled_from(
        ["Well [add(a=1), add(a=[2])] and on", '{"name": "add", "parameters": {}}', "[add(a=1)", "a [b]"]
    ),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_calls_and_words_are_the_same_at_every_chunking(assistant: Assistant, text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    texts = [text[begin:end] for begin, end in pairwise(places)]
    message = grow(assistant, texts, [ADD]).message
    expected = parse(text, [ADD])
    assert (message.content or "") == expected.text
    calls = message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        (call.name, call.arguments) for call in expected.tool_calls
    ]


def test_words_before_a_call_are_shown_at_once_and_the_call_when_it_is_whole(assistant: Assistant) -> None:
    opened, words, call = chunks(assistant, ["Let me see. ", "[add(", "a=1)]"], [ADD])
    assert (opened.delta.role, words.delta.content) == ("assistant", "Let me see. ")
    assert call.finish_reason == "tool_calls"
    assert json.loads(event(call)[6:])["delta"] == {
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}, "index": 0}
        ]
    }


def test_a_message_of_calls_alone_has_no_content_and_an_empty_one_has_empty_content(assistant: Assistant) -> None:
    assert grow(assistant, ["[add()]"], [ADD]).message.content is None
    assert grow(assistant, [""]).message.content == ""


def test_brackets_are_words_where_there_are_no_tools(assistant: Assistant) -> None:
    choice = grow(assistant, ["[add(", "a=1)]"])
    assert (choice.message.content, choice.finish_reason) == ("[add(a=1)]", "stop")


def test_parallel_calls_can_be_declined(assistant: Assistant) -> None:
    text = "[add(a=1), add(a=2)]"
    assert len(grow(assistant, [text], [ADD]).message.tool_calls or []) == 2
    assert len(grow(assistant, [text], [ADD], most=1).message.tool_calls or []) == 1


def test_log_probabilities_come_with_bytes_even_for_half_a_character(assistant: Assistant) -> None:
    first, second = assistant.tokenizer.encode("é")
    growing = GrowingChat(0, assistant.tokenizer, (), most_calls=None, new_call_id=str)
    assert (
        growing.push(Piece(0, "", first, TokenLogprobs(-1.0, ((first, -1.0), (270, -2.0), (271, -3.0))), None)) is None
    )
    chunk = growing.push(Piece(0, "é", second, TokenLogprobs(float("-inf"), ()), "length"))
    assert chunk is not None and chunk.logprobs is not None
    one, two = chunk.logprobs.content
    assert (one.bytes, two.bytes, one.token) == ([0xC3], [0xA9], "�")
    assert [each.bytes for each in one.top_logprobs] == [[0xC3], None, None]  # a special token, and padding
    assert two.logprob == -9999.0


def test_echoed_tokens_come_first_and_every_key_differs(assistant: Assistant) -> None:
    tokenizer = assistant.tokenizer
    first, second = tokenizer.encode("é")
    growing = GrowingCompletion(0, tokenizer, wants_logprobs=True)
    expected = [TokenLogprobs(-1.0, ((first, -1.0), (second, -2.0))), TokenLogprobs(-3.0, ())]
    echoed = growing.echo("é", [tokenizer.bos_id, first, second], expected, None)
    (a,) = tokenizer.encode("a")
    eot = tokenizer.special["<|eot|>"]
    made = growing.push(Piece(0, "a", a, TokenLogprobs(-0.5, ()), None))
    ended = growing.push(Piece(0, "", eot, TokenLogprobs(-0.25, ()), "stop"))
    assert made is not None and ended is not None
    choice = whole_completion([echoed, made, ended])
    assert choice.text == "éa" and choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["<|begin_of_text|>", "bytes:\\xc3", "bytes:\\xa9", "a", "<|eot|>"]
    assert choice.logprobs.token_logprobs == [None, -1.0, -3.0, -0.5, -0.25]
    assert choice.logprobs.top_logprobs[:2] == [None, {"bytes:\\xc3": -1.0, "bytes:\\xa9": -2.0}]
    assert choice.logprobs.text_offset == [0, 0, 0, 1, 2]


def test_a_token_outside_the_vocabulary_shows_as_its_number(assistant: Assistant) -> None:
    assert show(assistant.tokenizer, 100_000) == ("token_id:100000", None)
    assert show(assistant.tokenizer, assistant.tokenizer.bos_id) == ("<|begin_of_text|>", None)


def test_usage_adds_up() -> None:
    assert json.loads(event(usage(3, 4, 2))[6:]) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_reason_of_the_end_is_kept(assistant: Assistant, finish: str) -> None:
    growing = GrowingChat(1, assistant.tokenizer, (), most_calls=None, new_call_id=str)
    chunk = growing.push(Piece(0, "", None, None, finish))  # type: ignore[arg-type]
    assert chunk is not None and (chunk.finish_reason, chunk.index) == (finish, 1)


@given(cuts=st.lists(st.integers(1, 4), min_size=2, max_size=2), with_tools=st.booleans())
@settings(max_examples=20, deadline=None)
def test_pieces_that_come_together_make_what_they_make_one_by_one(
    assistant: Assistant, cuts: list[int], with_tools: bool
) -> None:
    texts = ["Wéll ", "[add(", "a=1", ")]", " ok", ""]
    pieces = [Piece(0, text, i + 1, TokenLogprobs(-i, ((i, -1.0),)), None) for i, text in enumerate(texts)]
    pieces[-1] = pieces[-1]._replace(finish="stop")
    first, second = sorted(cuts)
    groups = [group for group in (pieces[:first], pieces[first:second], pieces[second:]) if group]

    def chat(groups: Sequence[Sequence[Piece]]) -> ChatChoice:
        tools = [ADD] if with_tools else []
        growing = GrowingChat(0, assistant.tokenizer, tools, most_calls=None, new_call_id=lambda: "c", wants_ids=True)
        return whole_chat([chunk for group in groups if (chunk := growing.push(*group)) is not None])

    def completion(groups: Sequence[Sequence[Piece]]) -> CompletionChoice:
        growing = GrowingCompletion(0, assistant.tokenizer, wants_logprobs=True, prompt_ids=[1])
        return whole_completion([chunk for group in groups if (chunk := growing.push(*group)) is not None])

    one_by_one = [[piece] for piece in pieces]
    assert chat(groups) == chat(one_by_one)
    assert completion(groups) == completion(one_by_one)
