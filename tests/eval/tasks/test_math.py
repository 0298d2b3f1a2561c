"""MATH: the majority of several samples, and gold answers whole."""

from pathlib import Path

import pytest

from puna.eval.task import Item, judge, score_responses
from puna.eval.tasks.math import MATH_CHAT, maj_at, majority

SLICES = Path(__file__).parents[3].parent / "shared" / "data" / "eval"


def says(answer: str) -> str:
    return f"Hm. Final Answer: The final answer is ${answer}$. I hope it is correct."


def test_majority_counts_equal_formulas() -> None:
    pytest.importorskip("math_verify")
    samples = [says("3"), says("\\frac12"), "no idea", says("0.5")]
    assert majority(samples) == samples[1]
    assert majority(["no", "idea"]) == "no"
    item = Item(id="x", row={"answer": "\\frac{1}{2}"})
    assert judge(maj_at(4), item, samples).score.value == 1.0
    assert maj_at(4).metric == "em_maj1@4" and maj_at(1).name == "math"


@pytest.mark.slow
def test_all_gold_answers_are_right() -> None:
    pytest.importorskip("math_verify")
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    report = score_responses(MATH_CHAT, {item.id: [MATH_CHAT.gold(item)] for item in MATH_CHAT.items(SLICES)}, SLICES)
    assert (report.score, report.n) == (1.0, 120)
