"""LiveCodeBench's record format, on problems of our own: both kinds of tests, the window, hidden tests read safely."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from puna.eval.task import Item, score_responses
from puna.eval.tasks.livecodebench import LIVECODEBENCH, PRELUDE, private_tests, prompt, same_output, score

HERD = {
    "question_id": "herd",
    "question_content": "Read the number of llamas and print their legs.",
    "contest_date": "2024-10-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([{"input": "3\n", "output": "12\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "0\n", "output": "0", "testtype": "stdin"}]),
    "metadata": "{}",
    "solution": "print(4 * int(input()))",
}
PAIRS = {
    **HERD,
    "question_id": "pairs",
    "question_content": "Return all pairs of equal neighbours.",
    "contest_date": "2025-02-01T00:00:00",
    "starter_code": "class Solution:\n    def pairs(self, x: List[int]) -> List[List[int]]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 1, 2]", "output": "[[1, 1]]", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[]", "output": "[]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "pairs"}),
    "solution": "class Solution:\n    def pairs(self, x):\n        return [p for p in pairwise(x) if p[0] == p[1]]",
}
OUTSIDE = {**HERD, "question_id": "early", "contest_date": "2024-09-30"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [json.dumps(row) + "\n" for row in (HERD, PAIRS, OUTSIDE)]
    (tmp_path / "test.jsonl").write_text("".join(lines), "utf-8")
    return tmp_path


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_gold_is_right_and_empty_is_wrong_inside_the_window(data: Path) -> None:
    items = list(LIVECODEBENCH.items(data))
    assert [item.id for item in items] == ["herd", "pairs"]
    report = score_responses(LIVECODEBENCH, {item.id: [LIVECODEBENCH.gold(item)] for item in items}, data)
    assert report.score == 1.0, report.judged
    assert score_responses(LIVECODEBENCH, {item.id: [""] for item in items}, data).score == 0.0
    crossed = {"herd": [LIVECODEBENCH.gold(items[1])], "pairs": [LIVECODEBENCH.gold(items[0])]}
    assert score_responses(LIVECODEBENCH, crossed, data).score == 0.0


def test_prompt_names_the_wanted_form(data: Path) -> None:
    herd, pairs = (prompt(item).messages[1]["content"] for item in LIVECODEBENCH.items(data))
    assert "# YOUR CODE HERE" in herd and "class Solution" in pairs
    assert herd.startswith("### Question:\nRead") and pairs.endswith("(use the provided format with backticks)\n\n")


def test_failing_test_is_named() -> None:
    wrong = score(Item(id="herd", row=HERD), "```python\nprint(4 * int(input()) or 1)\n```")
    assert wrong.value == 0 and wrong.reason.startswith("test 2 of 2: wrong output")
    failed = score(Item(id="herd", row=HERD), "```python\nimport os\nos.fork()\n```")
    assert "attempted: process" in failed.reason


def test_hidden_tests_are_read_in_both_forms() -> None:
    tests = [{"input": "1", "output": "2", "testtype": "stdin"}]
    assert private_tests(json.dumps(tests)) == tests
    assert private_tests(packed(json.dumps(tests))) == tests


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("exploded",)


@pytest.mark.parametrize("text", [packed(Bomb()), packed([1]), packed("{}"), "not base64", packed("1")[:-8], ""])
def test_hidden_tests_of_another_form_are_refused_and_nothing_runs(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError):
        private_tests(text)
    assert capsys.readouterr().out == ""
    unscored = score(Item(id="herd", row={**HERD, "private_test_cases": text}), "```\nprint(1)\n```")
    assert unscored.value is None and "cannot be read" in unscored.reason


def test_outputs_agree_by_line_and_exact_number() -> None:
    assert same_output("1 2\n3.0 \n", "1 2\n3")
    assert not same_output("1\n2", "1 2")
    assert not same_output("50000000000000001", "50000000000000000")
    assert not same_output("yes", "Yes")


def test_prelude_defines_what_starter_code_uses() -> None:
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    assert {"List", "Counter", "heappush", "bisect_left", "sqrt", "pairwise", "lru_cache", "sys"} <= names.keys()
