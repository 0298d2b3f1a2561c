"""A run on several ranks is the run of one process: the same losses, and checkpoints that any number of ranks reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.train.loop import LOG, Team, model_config, train
from puna.train.recipe import from_dict
from puna.train.state import checkpoints, resume
from puna.weights.checkpoint import load
from tests.reference.ranks import Ranks


def on_rank(tables: dict[str, Any], run: str, steps: int) -> bool:
    """Trains here until `steps` are done, as if a pause had been asked for then."""
    said: list[str] = []
    recipe = from_dict(tables)
    outcome = train(replace(recipe, schedule=replace(recipe.schedule, steps=steps)), run, said.append)
    return outcome.finished


def masters(tables: dict[str, Any], run: str) -> dict[str, torch.Tensor]:
    """The whole weights and moments of a run's checkpoint, read by these ranks."""
    recipe = from_dict(tables)
    config = model_config(recipe)
    team = Team.of(recipe, config)
    state, _ = team.begin(recipe, config)
    ((_, home),) = checkpoints(Path(run))
    digest = json.loads((home / "state.json").read_text(encoding="utf-8"))["data_digest"]
    assert resume(state, recipe, digest, run, team.group)
    found = state.optimizer.tensors()
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in found.items()}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / LOG).read_text(encoding="utf-8").splitlines()]


def divided(tables: dict[str, Any], **parallel: int) -> dict[str, Any]:
    return tables | {"parallel": parallel}


@pytest.fixture
def exact(tables: dict[str, Any]) -> dict[str, Any]:
    """Four batches a step, float32, and AdamW-sized steps: so that rounding stays what it is for 20 steps."""
    tables["batch"] |= {"rows": 1, "accumulate": 4}
    tables["compute"] |= {"dtype": "float32"}
    tables["data"]["held_out"] = ""
    tables["optimizer"]["lr"] = 1e-3
    tables["schedule"] |= {"steps": 20}
    return tables


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [
        {"shard": 4, "expert": 2},
        {"shard": 2, "tensor": 2},
        {"context": 2, "shard": 2},
        {"pipeline": 2, "shard": 2, "expert": 2},
        {"replicate": 2, "shard": 2, "expert": 2},
    ],
    ids=str,
)
def test_twenty_steps_have_the_losses_of_one_process(
    four_ranks: Ranks, exact: dict[str, Any], parallel: dict[str, int], tmp_path: Path
) -> None:
    assert train(from_dict(exact), tmp_path / "one", lambda line: None).finished
    assert four_ranks.run(on_rank, divided(exact, **parallel), str(tmp_path / "four"), 20) == [True] * 4
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert len(one) == len(four) == 20
    assert max(abs(a - b) / a for a, b in zip(one, four, strict=True)) < 1e-4, list(zip(one, four, strict=True))
    alone, together = load(tmp_path / "one" / "model"), load(tmp_path / "four" / "model")
    assert alone.config == together.config


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_is_read_by_two_and_by_one(
    four_ranks: Ranks, two_ranks: Ranks, exact: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    exact["schedule"] |= {"steps": 2, "warmup_steps": 1, "decay_steps": 1}
    assert four_ranks.run(on_rank, divided(exact, shard=4, expert=2), str(run), 2) == [True] * 4
    by_four = four_ranks.run(masters, divided(exact, shard=4, expert=2), str(run))[0]
    by_two = two_ranks.run(masters, divided(exact, shard=2), str(run))[0]
    by_one = masters(exact, str(run))
    assert by_four.keys() == by_two.keys() == by_one.keys() and len(by_one) > 100
    for name, tensor in by_one.items():
        assert tensor.equal(by_two[name]) and tensor.equal(by_four[name]), name
