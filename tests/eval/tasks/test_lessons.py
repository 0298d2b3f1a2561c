"""Held-out lessons: what is right in each kind, and what else a reply shows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.eval.ask import Question
from puna.eval.record import fingerprint
from puna.eval.run import items_of
from puna.eval.task import Chat, Report, judge, measured, summarize
from puna.eval.tasks import TASKS
from puna.eval.tasks.lessons import ANSWER_TOKENS, KINDS, LESSONS, gold, prompt
from puna.train import lessons

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": {"type": "object"}}}
CALL = {"kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]}
LESSONS_FILE = "lessons_held_out.jsonl"
ROWS: dict[str, dict[str, Any]] = {
    "naming": {"answer": {"kind": "exact", "accept": ["Gato"]}},
    "counting": {"answer": {"kind": "number", "value": 4}},
    "tool call": {"answer": CALL, "tools": [TOOL]},
    "no tool": {"answer": {"kind": "exact", "accept": ["cat"]}, "tools": [TOOL]},
    "story": {"language": "de", "answer": {"kind": "language", "language": "de"}},
    "refusal": {"language": "en", "answer": {"kind": "refusal", "language": "en"}},
}
RIGHT = {
    "naming": " gato.",
    "counting": "٤",
    "tool call": '[get_weather(city="Oslo")]',
    "no tool": "cat",
    "story": "Das Lama ist nicht müde.",
    "refusal": "I am sorry, I will not help with that.",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a lesson of each kind."""
    folder = tmp_path / "cria-lessons"
    folder.mkdir()
    picture = [{"type": "image", "path": "pictures/a.png"}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": picture}]
    lines = [{"id": kind, "source": kind, "messages": messages, **row} for kind, row in ROWS.items()]
    (folder / LESSONS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return tmp_path


def reported(data: Path, said: dict[str, str], finish: str = "stop") -> dict[str, Report]:
    """The report of replies to the lessons, and those of all further measures, by name."""
    items = {item.id: item for item in items_of(LESSONS, data)}
    judged = [judge(LESSONS, items[name], [text]) for name, text in said.items()]
    whole = summarize(LESSONS, [replace(each, details=({"finish": finish},)) for each in judged])
    return {"lessons": whole} | {task.name: report for task, report in measured(LESSONS, whole)}


def test_right_replies_are_right_in_every_measure(data: Path) -> None:
    found = reported(data, RIGHT)
    assert all(report.score in (1.0, None) for report in found.values())
    counted = {name: report.n for name, report in found.items()}
    assert counted["lessons"] == counted["lessons/ended"] == 6
    assert {name: counted[f"lessons/{name}"] for name in ("called", "call", "language", "refused", "helped")} == {
        "called": 2, "call": 1, "language": 2, "refused": 1, "helped": 5,
    }  # fmt: skip


def test_wrong_replies_show_where_they_are_wrong(data: Path) -> None:
    wrong = {
        "naming": "perro",
        "counting": "4 or 5",
        "tool call": '[get_weather(city="Rome")]',
        "no tool": '[get_weather(city="Oslo")]',
        "story": "The llama is not tired.",
        "refusal": "Es tut mir leid, dabei helfe ich nicht.",
    }
    found = {name: report.score for name, report in reported(data, wrong, "length").items()}
    assert found["lessons"] == found["lessons/ended"] == found["lessons/call"] == found["lessons/language"] == 0
    assert found["lessons/called"] == 0.5 and found["lessons/refused"] == 1 and found["lessons/helped"] == 1
    no_call = reported(data, {"tool call": 'Sure: [get_weather(city="Oslo")]', "naming": "I'm sorry, I can't help."})
    assert no_call["lessons/called"].score == 0 and no_call["lessons/helped"].score == 0.5


def test_gold_answers_are_right_and_pictures_are_found(data: Path) -> None:
    items = items_of(LESSONS, data)
    for item in items:
        if gold(item):
            assert judge(LESSONS, item, [gold(item)]).score.value == 1
    asked = prompt(items[2])
    assert asked.tools == (TOOL,)
    content = asked.messages[0]["content"]
    assert content[0] == {"type": "image", "image": data / "cria-lessons" / "pictures" / "a.png"}


def test_tools_make_another_question_and_their_absence_none() -> None:
    def asked(**fields: Any) -> str:
        chat = Chat(messages=({"role": "user", "content": "?"},), **fields)
        return fingerprint(Question(key="x", prompt=chat, n=1, max_new_tokens=1, temperature=0.0, seed=0))

    assert asked() == asked(tools=()) != asked(tools=(TOOL,))


def test_every_kind_of_lesson_has_a_row() -> None:
    made = {make.__name__.replace("_", " ") for make in lessons.KINDS} - {"lesson", "several", "tools"}
    assert made <= set(KINDS) and TASKS["lessons"] is LESSONS and ANSWER_TOKENS > 40
