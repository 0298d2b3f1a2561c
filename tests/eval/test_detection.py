"""Figures of guards against counts by hand."""

import json
from pathlib import Path

import pytest

from puna.eval.detection import Judged, Labelled, area, figures, groups, measure, table, threshold_of
from puna.guard.guard import Context, code_guard, hidden_guard


def judged(score: float, is_bad: bool, *, alarm: bool | None = None, codes: tuple[str, ...] = ()) -> Judged:
    text = Labelled("set", "en", "CWE-78", Context.of_text(""), is_bad)
    return Judged(text, score >= 0.5 if alarm is None else alarm, score, codes)


def test_rates_are_counts_by_hand() -> None:
    rows = [judged(0.9, True, codes=("CWE-78",)), judged(0.8, True), judged(0.1, True), judged(0.6, False)]
    rows += [judged(0.2, False)] * 3
    found = measure(rows)
    assert (found.recall.hits, found.recall.n) == (2, 3)
    assert (found.false_alarms.hits, found.false_alarms.n) == (1, 4)
    assert (found.precision.hits, found.precision.n) == (2, 3)
    assert found.f1 == pytest.approx(2 / 3)
    assert (found.right_code.hits, found.right_code.n) == (1, 2)
    assert found.at_one_percent == pytest.approx(2 / 3), "above the worst benign text"


def test_area_counts_pairs_and_halves_ties() -> None:
    assert area([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert area([0.5], [0.5]) == 0.5
    assert area([0.3, 0.7], [0.5]) == 0.5
    assert area([], [0.5]) is None


def test_threshold_lets_one_percent_of_the_benign_exceed_it() -> None:
    rows = [judged(i / 1000, False) for i in range(1000)]
    threshold = threshold_of(rows)
    assert threshold is not None and sum(row.score > threshold for row in rows) == 10
    assert threshold_of([judged(1.0, True)]) is None


def test_sets_are_read_and_grouped(tmp_path: Path) -> None:
    (tmp_path / "code_pairs").mkdir()
    rows = [
        {
            "id": "1",
            "language": "python",
            "cwe": "CWE-78",
            "code": "import os\nos.system(input())\n",
            "label": "insecure",
        },
        {"id": "2", "language": "c", "cwe": "CWE-120", "code": "int main(void) { return 0; }\n", "label": "secure"},
    ]
    (tmp_path / "code_pairs" / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = figures({"code": code_guard(), "hidden": hidden_guard()}, tmp_path)
    assert list(found) == ["code"]
    assert found["code"]["all"].recall.value == 1.0 and found["code"]["all"].false_alarms.value == 0.0
    assert {"language python", "language c", "category CWE-78"} <= set(found["code"])
    assert "| code | all | 100.0%" in table(found)


def test_a_group_alone_is_not_repeated() -> None:
    assert [name for name, _ in groups([judged(0.1, True)])] == ["all"]
