"""Drift: means over all tokens, none of a model from itself, and what `quant.drift` says of a quantised one."""

from pathlib import Path

import pytest

import puna
from puna.eval.local import LocalModel
from puna.eval.run import run_task
from puna.eval.task import Divergence, score_responses
from puna.eval.tasks.drift import DRIFT, WINDOW
from puna.quant.drift import drift

DIVERGENCE, AGREEMENT, PERPLEXITY = DRIFT
TEXT = (Path(__file__).parents[3] / "DESIGN.md").read_text("utf-8")


def test_means_are_over_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("llamas", "utf-8")
    (tmp_path / "b.txt").write_text("graze", "utf-8")
    said = {"a": [Divergence(0.1, 1.0, 0.2, 30).write()], "b": [Divergence(0.4, 0.5, -0.6, 10).write()]}
    found = [score_responses(task, said, tmp_path).score for task in DRIFT]
    assert found == pytest.approx([(3 + 4) / 40, 35 / 40, 1.0])
    none = score_responses(DIVERGENCE, {"a": [""]}, tmp_path)
    assert (none.score, none.unscored) == (None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_quantised_model_drifts_as_quant_says(tmp_path: Path, format: str) -> None:
    (tmp_path / "design.txt").write_text(TEXT, "utf-8")
    full, small = puna.load("cria", dtype="float32"), puna.load("cria", dtype="float32", quantize=format)  # type: ignore[arg-type]
    model = LocalModel(small, reference=full)
    reports = [run_task(task, model, tmp_path) for task in DRIFT]
    ids = full.tokenizer.encode(TEXT)
    whole = len(ids) // WINDOW * WINDOW  # so that no window reaches back
    (tmp_path / "design.txt").write_text(full.tokenizer.decode(ids[:whole]), "utf-8")
    reports = [run_task(task, model, tmp_path) for task in DRIFT]
    pieces = [
        [*before[-1:], *ids[i : i + WINDOW]]
        for i in range(0, whole, WINDOW)
        if (before := [full.tokenizer.bos_id, *ids[:i]])
    ]
    wanted = drift(full.logits, small.logits, pieces)
    assert reports[0].score == pytest.approx(wanted.divergence, rel=1e-4)
    assert reports[1].score == pytest.approx(wanted.agreement, abs=1e-3)
    assert reports[2].score == pytest.approx(wanted.perplexity_small / wanted.perplexity_full, rel=1e-5)
    print(format, *(report.score for report in reports))
