"""Paired tests against their definitions: all coin tosses, all sign patterns."""

import itertools
import json
import math
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.eval.compare import compare, mcnemar, sign_flips, table


@pytest.mark.parametrize(("n_better", "n_worse"), [(0, 0), (1, 0), (5, 1), (3, 3), (8, 2)])
def test_mcnemar_counts_coin_tosses_at_least_as_uneven(n_better: int, n_worse: int) -> None:
    n = n_better + n_worse
    tosses = itertools.product((0, 1), repeat=n)
    far = sum(abs(sum(toss) - n / 2) >= abs(n_better - n / 2) for toss in tosses)
    assert mcnemar(n_better, n_worse) == pytest.approx(far / 2**n)


def test_sign_flips_come_close_to_all_patterns() -> None:
    differences = [0.5, 0.2, -0.1, 0.4, 0.3, 0.05, -0.2, 0.6]
    patterns = itertools.product((1, -1), repeat=len(differences))
    seen = abs(sum(differences)) - 1e-12
    exact = (
        sum(abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) >= seen for signs in patterns) / 2**8
    )
    clusters = [str(i) for i in range(8)]
    assert sign_flips(differences, None, clusters) == pytest.approx(exact, abs=0.015)  # 3 errors of 9,999 draws
    assert sign_flips([1.0] * 8, None, ["a"] * 8) == 1.0, "one source is no evidence"
    assert sign_flips([0.0, 0.0], None, ["a", "b"]) == 1.0


def run(folder: Path, task: str, values: dict[str, float | None], asked: str = "q", **more: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text("{}")
    lines = [
        {"id": id_, "asked": asked, "response": ["x"], "value": value, "answer": None, "reason": "", **more}
        for id_, value in values.items()
    ]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_compared_over_the_items_that_both_scored(tmp_path: Path) -> None:
    ids = [str(i) for i in range(10)]
    a = run(tmp_path / "a", "mbpp", {**dict.fromkeys(ids, 0.0), "only a": 1.0, "unscored": None})
    b = run(tmp_path / "b", "mbpp", {**dict.fromkeys(ids, 1.0), "0": 0.0, "unscored": 1.0}, asked="other")
    (found,) = compare(a, b)
    assert (found.n, found.n_other, found.n_changed) == (10, 2, 10)
    assert (found.a, found.b, found.n_better, found.n_worse) == (0.0, 0.9, 9, 0)
    assert found.difference == pytest.approx(0.9) and found.stderr == pytest.approx(0.1)
    assert found.test == "McNemar, exact" and found.p == pytest.approx(2 / 2**9)
    assert "| mbpp | 10 | 0.0 | 90.0 | +90.0 | +70.4..+109.6 | 9/0 | 0.00391 | McNemar, exact |" in table([found])
    assert "2 items in one run only; 10 items asked otherwise" in table([found])


def test_items_of_one_source_and_macro_averages_are_tested_by_sign_flips(tmp_path: Path) -> None:
    values = {str(i): float(i % 2) for i in range(6)}
    a = run(tmp_path / "a", "mmmu", values, cluster="one page")
    b = run(tmp_path / "b", "mmmu", dict.fromkeys(values, 1.0), cluster="one page")
    (found,) = compare(a, b)
    assert found.test == "sign flips" and found.p == 1.0 and found.stderr is None and found.low is None


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", "mbpp", {"1": 1.0}), run(tmp_path / "b", "mmmu", {"1": 1.0})
    with pytest.raises(ConfigError, match="no scored item in common"):
        compare(a, b)
    with pytest.raises(ConfigError, match="is no run's folder"):
        compare(tmp_path, b)
