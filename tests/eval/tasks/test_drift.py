"""Drift: means over all tokens, none of a model from itself, and what `quant.drift` says of a quantised one."""

from pathlib import Path

import pytest

import puna
from puna.eval.local import LocalModel, rolling_windows
from puna.eval.run import run_task
from puna.eval.task import Divergence, score_responses
from puna.eval.tasks.drift import DRIFT, WINDOW
from puna.quant.drift import drift
from puna.quant.swap import Format

DIVERGENCE, AGREEMENT, PERPLEXITY = DRIFT
TEXT = (Path(__file__).parents[3] / "DESIGN.md").read_text("utf-8")


def test_means_are_over_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("llamas", "utf-8")
    (tmp_path / "b.txt").write_text("graze", "utf-8")
    said = {"a.txt": [Divergence(0.1, 1.0, 0.2, 30).write()], "b.txt": [Divergence(0.4, 0.5, -0.6, 10).write()]}
    found = [score_responses(task, said, tmp_path).score for task in DRIFT]
    assert found == pytest.approx([(3 + 4) / 40, 35 / 40, 1.0])
    none = score_responses(DIVERGENCE, {"a.txt": [""]}, tmp_path)
    assert (none.score, none.unscored) == (None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_quantised_model_drifts_as_quant_says(tmp_path: Path, format: Format) -> None:
    full, small = puna.load("cria", dtype="float32"), puna.load("cria", dtype="float32", quantize=format)
    ids = full.tokenizer.encode(TEXT)[: 8 * WINDOW]  # whole windows, so that none reaches back
    (tmp_path / "design.txt").write_text(full.tokenizer.decode(ids), "utf-8")
    assert full.tokenizer.encode(full.tokenizer.decode(ids)) == ids
    model = LocalModel(small, reference=full)
    found = [run_task(task, model, tmp_path).score for task in DRIFT]
    pieces = [piece for piece, _ in rolling_windows(ids, full.tokenizer.bos_id, WINDOW)]
    wanted = drift(full.logits, small.logits, pieces)
    ratio = wanted.perplexity_small / wanted.perplexity_full
    assert found == pytest.approx([wanted.divergence, wanted.agreement, ratio], rel=1e-3)
    print(format, wanted.n_tokens, *found)
