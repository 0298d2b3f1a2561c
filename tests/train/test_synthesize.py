"""Replies that a program finds right become conversations, with where they come from; a stopped run goes on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.prompt.message import Message
from puna.train import chats, synthesize
from puna.train.synthesize import Order
from tests.train.chat_lines import write_lines
from tests.train.runs import silent

TASKS: list[dict[str, Any]] = [
    {
        "id": f"task{i}",
        "source": "asking",
        "messages": [{"role": "user", "content": f"sun {i}?"}],
        "answer": {"kind": "any"},
    }
    for i in range(5)
]
JUDGES = {"any": lambda reply, answer, tools: float(len(reply) % 3 != 0)}


def order_of(tiny: Path, folder: Path, **wish: Any) -> Order:
    tasks = write_lines(folder / "tasks.jsonl", TASKS)
    wish = {"n": 3, "max_new_tokens": 12, "temperature": 1.0} | wish
    return Order(model=str(tiny), tasks=(str(tasks),), out=folder / "made.jsonl", **wish)


@pytest.fixture(autouse=True)
def _marks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesize, "AT_ONCE", 2)


def test_what_stays_is_read_by_tuning_and_says_where_it_comes_from(tiny: Path, tmp_path: Path) -> None:
    order = order_of(tiny, tmp_path)
    made = synthesize.synthesize(order, silent, JUDGES)
    lines = [json.loads(line) for line in order.out.read_text().splitlines()]
    assert made.tasks == 5 and made.replies == 15
    assert made.kept == len(lines) == 15 - sum(made.dropped.values()) > 0
    for line, chat in zip(lines, chats.read(order.out), strict=True):
        assert chat.messages[-1].role == "assistant" and len(line["messages"][-1]["content"]) % 3
        assert line["provenance"]["task"] == line["id"].rpartition("-")[0]
        assert line["provenance"]["reward"] == 1 and len(line["provenance"]["weights"]) == 64
    assert not list(tmp_path.glob("*.journal"))


def test_a_stopped_run_goes_on_and_makes_the_same(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir(), (tmp_path / "stopped").mkdir()
    whole, stopped = order_of(tiny, tmp_path / "whole"), order_of(tiny, tmp_path / "stopped")
    synthesize.synthesize(whole, silent, JUDGES)

    def stop(line: str) -> None:
        if line.startswith("2 tasks"):
            with stopped.out.open("a") as file:
                file.write('{"half a li')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize(stopped, stop, JUDGES)
    with pytest.raises(ConfigError, match="of another order"):
        synthesize.synthesize(order_of(tiny, tmp_path / "stopped", seed=2), silent, JUDGES)
    made = synthesize.synthesize(stopped, silent, JUDGES)
    assert made.tasks == 5 and stopped.out.read_text() == whole.out.read_text().replace(
        str(tmp_path / "whole"), str(tmp_path / "stopped")
    )


def test_only_the_best_reply_stays_where_that_is_asked(tiny: Path, tmp_path: Path) -> None:
    order = order_of(tiny, tmp_path, best=True, least_reward=0.0)
    made = synthesize.synthesize(order, silent, JUDGES)
    assert made.kept == 5 and made.dropped["not the best"] == 10


def test_what_an_evaluation_set_holds_is_left_out(tiny: Path, tmp_path: Path) -> None:
    order = order_of(tiny, tmp_path, best=True, least_reward=0.0)
    synthesize.synthesize(order, silent, JUDGES)
    tasks = [each | {"messages": [{"role": "user", "content": WORDS}]} for each in TASKS[:1]] + TASKS[1:]
    write_lines(tmp_path / "other.jsonl", tasks)
    exam = write_lines(tmp_path / "exam.jsonl", [{"question": WORDS}])
    against = Order(
        model=str(tiny), tasks=(str(tmp_path / "other.jsonl"),), out=tmp_path / "second.jsonl", n=2, max_new_tokens=4,
        least_reward=0.0, best=True, against=(exam,),
    )  # fmt: skip
    made = synthesize.synthesize(against, silent, JUDGES)
    assert made.dropped["in an evaluation set"] == 1 and made.kept == 4


WORDS = "which colour has the grass behind the house where the old llama sleeps at night"


def test_a_file_that_is_there_is_not_written_over(tiny: Path, tmp_path: Path) -> None:
    order = order_of(tiny, tmp_path)
    order.out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        synthesize.synthesize(order, silent, JUDGES)
    assert order.out.read_text() == "mine"


class Digits:
    """Gives replies 0, 1/4, 1/2, 3/4, 1 in turn, and nothing to the sixth."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str]] = []

    def scores(self, asked: Sequence[tuple[Sequence[Message], str]]) -> list[float | None]:
        self.asked += [([message.text for message in messages], reply) for messages, reply in asked]
        return [None if i % 6 == 5 else i % 6 / 4 for i in range(len(asked))]


def test_a_model_that_judges_says_what_stays_of_tasks_without_an_answer(tiny: Path, tmp_path: Path) -> None:
    order = order_of(tiny, tmp_path, judge=str(tiny), judge_prompt="Be fair.", least_score=0.5, least_reward=0.0)
    tasks = [{name: value for name, value in task.items() if name != "answer"} for task in TASKS]
    write_lines(tmp_path / "tasks.jsonl", tasks)
    judge = Digits()
    made = synthesize.synthesize(order, silent, None, lambda model: judge)
    n = len(judge.asked)
    assert n == made.replies - made.dropped.get("worth too little", 0) >= 12
    assert judge.asked[0][0] == ["sun 0?"]
    lines = [json.loads(line) for line in order.out.read_text().splitlines()]
    judged = [line["provenance"]["judge"] for line in lines]
    digest = hashlib.sha256(b"Be fair.").hexdigest()
    assert {(each["model"], each["prompt"]) for each in judged} == {(str(tiny), digest)}
    assert {each["score"] for each in judged} <= {0.5, 0.75, 1.0} and len(judged) == made.kept
    assert made.dropped["judged too low"] >= 4 and made.dropped["too long to judge"] >= 2
