"""MBPP: every gold program passes, and early exits do not."""

from pathlib import Path

import pytest

from puna.eval.task import Item, score_responses
from puna.eval.tasks.mbpp import MBPP, score

SLICES = Path(__file__).parents[3].parent / "shared" / "data" / "eval"
ITEM = Item(id="1", row={"text": "double", "test_list": ["assert double(2) == 4", "assert double(0) == 0"]})


def test_all_gold_programs_pass() -> None:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    report = score_responses(MBPP, {item.id: [MBPP.gold(item)] for item in MBPP.items(SLICES)}, SLICES)
    assert (report.score, report.n) == (1.0, 120)


@pytest.mark.parametrize(
    ("program", "value", "reason"),
    [
        ("def double(x): return 2 * x\n[DONE]\nassert False", 1, ""),
        ("def double(x): return x + 2", 0, "AssertionError"),
        ("def double(x): return 2 * x\nraise SystemExit(0)", 0, "exited"),
        ("import os\nos._exit(0)", 0, "exited"),
        (" \n", 0, "no program"),
    ],
)
def test_program_must_reach_the_end_of_its_tests(program: str, value: int, reason: str) -> None:
    result = score(ITEM, program)
    assert result.value == value and reason in result.reason
