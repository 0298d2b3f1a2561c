"""Long texts: as many tokens as were asked for, what is hidden at its depth, and the table of results."""

import json
import random
from pathlib import Path

import pytest

from puna.cli import main
from puna.eval.metrics import Estimate
from puna.eval.task import Task
from puna.eval.tasks import LONG_CONTEXT, TASKS
from puna.eval.tasks.haystack import DEPTHS, LENGTHS, by_length_and_depth, cells, fill, hide, sentences
from tests.reference.tiny import write_tiny_checkpoint


class Words:
    """A reader of 4,096 tokens that counts a word as one."""

    context_len = 4096

    def count(self, text: str) -> int:
        return len(text.split())


class Silent:
    """A server that tells nothing."""

    context_len = None

    def count(self, text: str) -> None:
        return None


def text_of(task: Task, place: int) -> str:
    item = list(task.items(None))[place]
    prompt = task.prompt(item)
    return prompt.text if hasattr(prompt, "text") else prompt.messages[0]["content"][0]["text"]


@pytest.mark.parametrize("name", ["needle", "needle_base", "copy", "copy_base"])
def test_prompts_are_as_long_as_the_cell_says_and_always_the_same(name: str) -> None:
    assert TASKS[name].fit is not None
    task = TASKS[name].fit(Words())
    items = list(task.items(None))
    assert {item.row["cell"].length for item in items} == {512, 1024, 2048, 4096}
    assert len({item.group for item in items}) == 4 * len(DEPTHS) and len({item.id for item in items}) == len(items)
    for place in (0, 9, 13, 39):
        text = text_of(task, place)
        n = len(text.split()) + task.max_new_tokens
        assert 0.9 * items[place].row["cell"].length < n <= items[place].row["cell"].length
        assert text == text_of(task, place)


def test_every_length_is_asked_of_a_server_that_tells_nothing_and_of_nobody() -> None:
    for task in LONG_CONTEXT:
        assert task.fit is not None
        ids = [item.id for item in task.items(None)]
        assert [item.id for item in task.fit(Silent()).items(None)] == ids
    assert len(list(cells(LENGTHS))) == len(LENGTHS) * len(DEPTHS) * 2
    assert abs(len(text_of(TASKS["needle"], 0)) / 4 - 512) < 96


def test_pieces_fill_the_room_and_no_more() -> None:
    hay = fill(sentences(random.Random(0)), " ", 100, Words().count)
    assert 85 < len(" ".join(hay).split()) <= 100
    assert fill(sentences(random.Random(0)), " ", 3, Words().count) == []
    assert hide(["a", "b"], "x", 0.0) == ["x", "a", "b"] and hide(["a", "b"], "x", 0.5) == ["a", "x", "b"]
    assert hide(["a", "b"], "x", 1.0) == ["a", "b", "x"]


def test_results_are_a_table_of_depth_by_length() -> None:
    groups = {
        "512 tokens, 0 % deep": Estimate(value=1.0, stderr=None, n=1),
        "4096 tokens, 0 % deep": Estimate(value=0.5, stderr=None, n=1),
        "4096 tokens, 25 % deep": Estimate(value=0.25, stderr=None, n=1),
    }
    assert by_length_and_depth(groups).splitlines() == [
        "| depth | 512 | 4,096 |",
        "| :--- | ---: | ---: |",
        "| 0 % | 100 | 50 |",
        "| 25 % | – | 25 |",
    ]


def test_a_run_leaves_the_table_and_no_prompt_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model of 512 tokens, a byte each."""
    model = write_tiny_checkpoint(tmp_path / "tiny")
    assert main(["eval", str(model), "--task", "needle,copy_base", "--json", "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("needle", "copy_base"):
        assert (found[name]["n"], found[name]["unscored"]) == (10, 0)
        lines = (tmp_path / "run" / f"{name}.md").read_text("utf-8").splitlines()
        assert lines[0] == "| depth | 512 |" and len(lines) == 2 + len(DEPTHS)
