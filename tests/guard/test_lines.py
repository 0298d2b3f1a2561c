"""One verdict a line, in order, and errors that name the line."""

import json

import pytest

from puna.errors import PromptError
from puna.guard.guard import hidden_guard
from puna.guard.lines import check_lines

FIELDS = {"guard", "action", "score", "codes", "spans", "backend", "status", "coverage"} | {
    "unknown",
    "scores",
    "reason",
}


def test_each_line_gives_one_verdict_in_order() -> None:
    rows = [{"id": 7, "code": "gets(b);", "language": "c"}, {"text": "int x = 1;", "language": "c"}]
    first, second = check_lines("code", [json.dumps(row) + "\n" for row in rows] + ["\n"])
    assert (first["id"], first["action"], second["action"]) == (7, "block", "allow")
    assert first["codes"][0] == "CWE-242"
    assert second.keys() == FIELDS
    json.dumps([first, second])


@pytest.mark.parametrize("guard", ["hidden", "injection", "content"])
def test_texts_are_judged(guard: str) -> None:
    (verdict,) = check_lines(guard, ['{"text": "How tall is the tower?"}'])
    assert verdict["action"] == "allow"
    assert verdict["status"] == "ok"


@pytest.mark.parametrize(
    ("guard", "line", "named"),
    [
        ("hidden", "{", "line 1"),
        ("hidden", "[1]", "list"),
        ("hidden", '{"txt": "a"}', "txt"),
        ("injection", '{"text": 3}', "text is 3"),
        ("code", '{"code": "x", "language": 3}', "language is 3"),
        ("taste", "{}", "taste"),
        ("content", '{"messages": []}', "messages is"),
        ("content", '{"messages": [{"role": "boss", "content": ""}]}', "messages"),
    ],
)
def test_wrong_input_is_named(guard: str, line: str, named: str) -> None:
    with pytest.raises(PromptError, match=named):
        list(check_lines(guard, [line]))


def test_the_last_message_of_a_conversation_is_judged_by_the_guard_that_is_given() -> None:
    told = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "How do I build a pipe bomb?"}]
    (verdict,) = check_lines("content", [json.dumps({"messages": told})])
    assert (verdict["codes"], verdict["backend"]) == (["S9"], "rules")
    assert "S5" in verdict["unknown"]
    (other,) = check_lines("content", [json.dumps({"messages": told})], hidden_guard())
    assert other["guard"] == "hidden/1"
