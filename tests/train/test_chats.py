"""Conversations are read from both shapes, and a wrong line is named with its field and a remedy."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from puna.errors import ConfigError, PromptError
from puna.train.chats import Chat, read
from tests.train.chat_lines import write_lines

USER = {"role": "user", "content": "sun?"}
ANSWER = {"role": "assistant", "content": "grass"}


def one(tmp_path: Path, line: dict[str, Any]) -> Chat:
    (chat,) = read(write_lines(tmp_path / "chats.jsonl", [line]))
    return chat


def test_both_shapes_of_one_conversation_are_the_same(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    call = {"name": "look", "arguments": {"at": "sky"}}
    tool = {"name": "look", "description": "", "parameters": {}}
    ours = one(
        tmp_path,
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": " what?"}]},
                {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
                {"role": "tool", "content": "blue"},
                {"role": "assistant", "content": "it is blue"},
            ],
            "tools": [{"type": "function", "function": tool}],
        },
    )
    theirs = one(
        tmp_path,
        {
            "conversations": [
                {"from": "human", "value": "<image> what?"},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "blue"},
                {"from": "gpt", "value": "it is blue"},
            ],
            "images": ["a.png"],
            "system": "be brief",
            "tools": json.dumps([tool]),
        },
    )
    assert [m.role for m in ours.messages] == [m.role for m in theirs.messages]
    assert [m.text for m in ours.messages] == [m.text for m in theirs.messages]
    assert [m.tool_calls for m in ours.messages] == [m.tool_calls for m in theirs.messages]
    assert ours.messages[1].images[0].tobytes() == theirs.messages[1].images[0].tobytes()
    assert ours.tools == theirs.tools and ours.learnt == theirs.learnt == (False, False, True, False, True)


def test_a_message_of_weight_zero_is_not_learnt_and_other_fields_are_kept(tmp_path: Path) -> None:
    chat = one(tmp_path, {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER], "answer": 7, "id": 3})
    assert chat.learnt == (False, False, False, True)
    assert chat.facts == {"answer": 7} and chat.id == "3"


def test_a_preference_has_two_ways_to_go_on(tmp_path: Path) -> None:
    chat = one(tmp_path, {"prompt": "sun?", "chosen": [ANSWER], "rejected": {"from": "gpt", "value": "herd"}})
    assert [m.role for m in chat.messages] == ["user"]
    assert (chat.chosen[0].text, chat.rejected[0].text) == ("grass", "herd")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "messages: a line has one of messages, conversations and prompt"),
        ({"messages": "x"}, "messages: is of type str; give a list"),
        ({"messages": []}, "messages: is empty"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role: is 'owner'; expected one of"),
        ({"messages": [USER, USER | {"role": "system"}]}, "messages[1].role: is system; put the system message first"),
        ({"messages": [USER, ANSWER | {"weight": 2}]}, "messages[1].weight: is 2; give 0 (not learnt) or 1"),
        ({"messages": [USER | {"role": "tool"}]}, "messages[0].role: is tool, and no call stands before it"),
        ({"conversations": [{"from": "cow", "value": "moo"}]}, "conversations[0].from: is 'cow'; expected one of"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "has more <image> marks than there are images"),
        ({"conversations": [{"from": "human", "value": "x"}], "images": ["a.png"]}, "images: 1 are given and 0 marked"),
        ({"prompt": "x", "chosen": "y"}, "rejected: is missing; a preference has both"),
        ({"messages": [USER, ANSWER], "tools": "["}, "tools: is not valid JSON"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "path": "../a.png"}]}, ANSWER]},
            "messages[0].content[0].image: '../a.png' lies outside the folder",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "path": "no.png"}]}, ANSWER]},
            "messages[0].content[0].image: cannot read",
        ),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": [USER, ANSWER]}, line])
    with pytest.raises(PromptError) as raised:
        list(read(path))
    assert str(raised.value).startswith(f"{path}, line 2: ") and said in str(raised.value)


def test_a_plain_text_is_read_where_it_may_be(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [{"id": "t", "text": "Once", "author": "A"}])
    (chat,) = read(path, texts=True)
    assert (chat.id, chat.text, chat.messages, chat.facts) == ("t", "Once", (), {"author": "A"})
    with pytest.raises(PromptError, match="one of messages, conversations and prompt"):
        list(read(path))
    for line, said in (({"text": " "}, "is no text or empty"), ({"text": "a", "chosen": "b"}, "stands beside chosen")):
        with pytest.raises(PromptError, match=rf"line 1: text: {said}"):
            list(read(write_lines(tmp_path / "wrong.jsonl", [line]), texts=True))


def test_what_is_no_json_and_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"messages": \n', encoding="utf-8")
    with pytest.raises(PromptError, match="line 1: not JSON"):
        list(read(tmp_path / "x.jsonl"))
    with pytest.raises(ConfigError, match=r"data\.chats: .* does not exist"):
        list(read(tmp_path / "none.jsonl"))
