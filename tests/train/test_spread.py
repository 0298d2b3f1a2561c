"""Compiled layers on several ranks: the gradients of one process that compiles nothing, the losses of eager ranks."""

from pathlib import Path
from typing import Any

import pytest

from puna.train.recipe import ParallelRecipe
from tests.reference.ranks import Ranks
from tests.train.runs import divided, finished, logged
from tests.train.test_passes import FOUR, TWO, check

CLOSE = 1e-4
"""Relative, of losses and norms in 20 steps of AdamW in float32, whose first steps are signs of gradients."""


@pytest.mark.slow
@pytest.mark.parametrize("maverick", [False, True])
@pytest.mark.parametrize("layout", [*TWO, {"shard": 2, "recompute": True}], ids=str)
def test_compiled_layers_of_two_ranks_have_the_gradients_of_one_process(
    two_ranks: Ranks, layout: dict[str, int], maverick: bool
) -> None:
    check(two_ranks, ParallelRecipe(**layout), maverick, 2 if layout.get("pipeline") else 1, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR, ids=str)
def test_compiled_layers_of_four_ranks_have_the_gradients_of_one_process(
    four_ranks: Ranks, layout: dict[str, int]
) -> None:
    check(four_ranks, ParallelRecipe(**layout), False, 2, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"shard": 2, "expert": 2}, {"tensor": 2}, {"pipeline": 2}], ids=str)
def test_twenty_compiled_steps_have_the_losses_of_eager_ones(
    two_ranks: Ranks, tables: dict[str, Any], parallel: dict[str, int], tmp_path: Path
) -> None:
    tables["batch"] |= {"rows": 1, "accumulate": 4}
    tables["optimizer"] |= {"lr": 1e-3, "matrices": "adamw"}
    tables["schedule"] |= {"steps": 20}
    tables["data"]["held_out"] = ""
    for compiled in (False, True):
        tables["compute"] |= {"dtype": "float32", "compile": compiled}
        assert all(two_ranks.run(finished, divided(tables, **parallel), str(tmp_path / str(compiled))))
    for key in ("loss", "grad_norm", "balance"):
        eager, found = (logged(tmp_path / name, key) for name in ("False", "True"))
        assert len(eager) == len(found) == 20
        assert max(abs(a - b) / a for a, b in zip(eager, found, strict=True)) < CLOSE, key
