"""Steps that would do harm are told from others, named by their documents, and end the run or are left out."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.errors import PunaError
from puna.train.loop import train
from puna.train.pack import Order
from puna.train.recipe import SpikesRecipe, from_dict
from puna.train.spikes import Limits, Recent
from tests.reference.ranks import Ranks
from tests.train.runs import assert_same_checkpoint, lines, of_texts, silent

STRANGE = "strange"
"""The one document that is not like the others."""


def told(losses: list[float], window: int = 8) -> Recent:
    recent = Recent()
    for loss in losses:
        recent.note(loss, 2 * loss, window)
    return recent


def test_nothing_is_far_above_before_half_a_window_is_known() -> None:
    wish = SpikesRecipe(sigma=2.0, window=8)
    assert told([1.0, 3.0, 2.0]).limits(wish) == Limits()
    assert told([1.0, 3.0, 1.0, 3.0]).limits(wish) == Limits(
        loss=pytest.approx(2 + 2 * math.sqrt(4 / 3)), norm=pytest.approx(4 + 2 * math.sqrt(16 / 3))
    )
    assert told([1.0, 3.0, 1.0, 3.0]).limits(SpikesRecipe()) == Limits()


def test_only_the_last_steps_are_remembered() -> None:
    assert told([9.0, 1.0, 2.0, 3.0, 4.0], window=4).losses == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (2.0, 5.0, ""),
        (math.nan, math.nan, "the loss is not finite"),
        (2.0, math.inf, "the gradient is not finite"),
        (3.5, 9.0, "the loss is 3.5, where the steps before allow 3"),
        (2.0, 6.5, "the gradient is 6.5, where the steps before allow 6"),
    ],
)
def test_what_is_wrong_is_said(loss: float, norm: float, said: str) -> None:
    assert Limits(loss=3.0, norm=6.0).broken(loss, norm) == said


@pytest.fixture
def calm(tables: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Twenty documents, one a step, which are equal but for the sixteenth to be read."""
    unlike = Order(np.zeros(20, dtype=np.int64), [1.0], tables["data"]["seed"]).epoch(0)[15]
    texts = [("Q7#?@&%!~^*+", STRANGE) if number == unlike else ("llama llamas", f"d{number}") for number in range(20)]
    tables = of_texts(tables, {name: text for text, name in texts}, tmp_path)
    tables["batch"] |= {"row_len": 16, "window": 1}
    return tables | {
        "schedule": tables["schedule"] | {"steps": 20},
        "checkpoint": {"every_steps": 6, "every_seconds": 0},
        "spikes": {"action": "skip", "sigma": 6.0, "window": 8},
    }


def test_a_step_that_is_far_above_the_others_is_left_out_and_named_also_by_a_run_that_was_stopped(
    calm: dict[str, Any], tmp_path: Path
) -> None:
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    assert train(from_dict(calm), run, silent).finished
    (spike,) = [line for line in lines(run) if "skipped" in line]
    assert spike["documents"] == [STRANGE] and spike["learnt"] == 0 and spike["tokens"] > 0
    assert "the loss is" in spike["skipped"] and spike["loss"] > 2 * lines(run)[spike["step"]]["loss"]

    calm["spikes"] |= {"action": "stop"}
    with pytest.raises(PunaError, match=rf"step {spike['step']}: the loss is .* documents {STRANGE}; .* spikes.action"):
        train(from_dict(calm), stopped, silent)
    calm["spikes"] |= {"action": "skip"}
    assert train(from_dict(calm), stopped, silent).finished
    assert_same_checkpoint(stopped, run)
    kept = ("step", "loss", "grad_norm", "skipped", "documents")
    assert [[line.get(key) for key in kept] for line in lines(stopped)] == [
        [line.get(key) for key in kept] for line in lines(run)
    ]


def test_a_run_whose_every_step_is_left_out_ends(calm: dict[str, Any], tmp_path: Path) -> None:
    calm["optimizer"]["lr"] = 1e30
    calm["spikes"] = {"action": "skip", "in_a_row": 3}
    with pytest.raises(PunaError, match=r"the (loss|gradient) is not finite, documents .*; so were 3 steps in a row"):
        train(from_dict(calm), tmp_path / "run", silent)
    lost = [line for line in lines(tmp_path / "run") if "skipped" in line]
    assert len(lost) == 2 and all(line["loss"] is None or line["grad_norm"] is None for line in lost)


def test_a_run_goes_on_with_another_choice_and_earlier_runs_with_none(calm: dict[str, Any]) -> None:
    chosen = from_dict(calm)
    del calm["spikes"]
    assert from_dict(calm).digest == chosen.digest and from_dict(calm).spikes == SpikesRecipe()


def on_rank(tables: dict[str, Any], run: str) -> bool:
    return train(from_dict(tables), run, silent).finished


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"shard": 2, "expert": 2}, {"context": 2}, {"pipeline": 2}, {"tensor": 2}], ids=str)
def test_ranks_agree_on_what_is_left_out(
    two_ranks: Ranks, calm: dict[str, Any], tmp_path: Path, layout: dict[str, int]
) -> None:
    """Two batches a step: the document that is not like the others is read once in ten steps."""
    calm["batch"]["accumulate"] = 2
    calm["schedule"] |= {"steps": 28}
    assert train(from_dict(calm), tmp_path / "one", silent).finished
    assert two_ranks.run(on_rank, calm | {"parallel": layout}, str(tmp_path / "two")) == [True, True]
    left_out = [
        [(line["step"], line["documents"]) for line in lines(tmp_path / run) if "skipped" in line]
        for run in ("one", "two")
    ]
    assert left_out[0] and [step for step, _ in left_out[0]] == [step for step, _ in left_out[1]]
    assert all(STRANGE in documents for _, documents in left_out[1])
