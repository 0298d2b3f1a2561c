"""GPQA's record format, on questions of our own: the order of the options is fixed and even."""

import json
from collections import Counter
from pathlib import Path

import pytest

from puna.eval.task import score_responses
from puna.eval.tasks.gpqa import GPQA_DIAMOND, options, right_letter


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "Question": f"What is {i} llamas times {i}?",
            "Correct Answer": f"{i * i} llamas",
            **{f"Incorrect Answer {j}": f"{i * i + j} llamas" for j in (1, 2, 3)},
        }
        for i in range(120)
    ]
    (tmp_path / "gpqa_diamond.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def test_gold_is_right_empty_is_wrong_and_one_letter_is_chance(data: Path) -> None:
    items = list(GPQA_DIAMOND.items(data))
    assert score_responses(GPQA_DIAMOND, {item.id: [GPQA_DIAMOND.gold(item)] for item in items}, data).score == 1.0
    assert score_responses(GPQA_DIAMOND, {item.id: [""] for item in items}, data).score == 0.0
    report = score_responses(GPQA_DIAMOND, {item.id: ["The best answer is (A)."] for item in items}, data)
    assert report.score is not None and abs(report.score - 0.25) < 0.16  # four standard errors


def test_order_of_options_is_fixed_and_shown(data: Path) -> None:
    items = list(GPQA_DIAMOND.items(data))
    assert [options(item) for item in items] == [options(item) for item in GPQA_DIAMOND.items(data)]
    assert set(Counter(right_letter(item) for item in items)) == set("ABCD")
    assert f"{right_letter(items[5])}. 25 llamas" in str(GPQA_DIAMOND.prompt(items[5]))
