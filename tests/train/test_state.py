"""A checkpoint is whole, restores every bit, and belongs to one recipe and one set of documents."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import PunaError, WeightsError
from puna.train.loop import model_config
from puna.train.pack import DataState
from puna.train.recipe import Recipe, from_dict
from puna.train.state import CHECKPOINT, STATE, TrainingState, begin, checkpoints, resume, save, trained
from puna.weights.checkpoint import save_hf


@pytest.fixture
def recipe(tables: dict[str, Any]) -> Recipe:
    return from_dict(tables)


def fresh(recipe: Recipe) -> TrainingState:
    return begin(recipe, model_config(recipe))


def test_a_run_begins_with_weights_that_the_recipe_alone_decides(recipe: Recipe) -> None:
    one, other = fresh(recipe), fresh(recipe)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert a.equal(b) and a.dtype == torch.bfloat16


def test_a_run_may_begin_with_the_weights_of_another(recipe: Recipe, tmp_path: Path) -> None:
    earlier = fresh(recipe)
    with torch.no_grad():
        for parameter in earlier.model.parameters():
            parameter.mul_(3)
    save_hf(earlier.model, earlier.model.config, tmp_path / "model")
    start = replace(recipe, model=replace(recipe.model, start=str(tmp_path / "model")))
    state = fresh(start)
    for a, b in zip(state.model.parameters(), earlier.model.parameters(), strict=True):
        assert a.equal(b)
    assert state.optimizer.masters()["head.weight"].dtype == torch.float32 and state.step == 0


def test_a_start_that_is_missing_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    start = replace(recipe, model=replace(recipe.model, start=str(tmp_path / "none")))
    with pytest.raises(PunaError, match="none"):
        fresh(start)


def test_a_checkpoint_restores_everything(recipe: Recipe, tmp_path: Path) -> None:
    state = fresh(recipe)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step(1.0)
    state.step, state.data, state.seconds, state.tokens = 7, DataState(1, 5, (3, 4)), 1.5, 900
    save(state, recipe, "digest", tmp_path).wait()
    assert [path.name for path in tmp_path.iterdir()] == [f"{CHECKPOINT}-00000007"]
    restored = fresh(recipe)
    assert resume(restored, recipe, "digest", tmp_path)
    assert (restored.step, restored.data, restored.seconds, restored.tokens) == (7, DataState(1, 5, (3, 4)), 1.5, 900)
    for a, b in zip(restored.model.parameters(), state.model.parameters(), strict=True):
        assert a.equal(b)
    for name, master in restored.optimizer.masters().items():
        assert master.equal(state.optimizer.masters()[name])
    of_run = trained(tmp_path, model_config(recipe), torch.bfloat16)
    assert all(a.equal(b) for a, b in zip(of_run.parameters(), state.model.parameters(), strict=True))


def test_what_changes_behind_a_checkpoint_is_not_in_it(recipe: Recipe, tmp_path: Path) -> None:
    state = fresh(recipe)
    before = {name: master.clone() for name, master in state.optimizer.masters().items()}
    saving = save(state, recipe, "digest", tmp_path)
    for master in state.optimizer.masters().values():
        master.fill_(7)
    saving.wait()
    restored = fresh(recipe)
    assert resume(restored, recipe, "digest", tmp_path)
    assert all(before[name].equal(master) for name, master in restored.optimizer.masters().items())


def test_a_checkpoint_takes_the_place_of_the_one_before(recipe: Recipe, tmp_path: Path) -> None:
    state = fresh(recipe)
    for step in (2, 4):
        state.step = step
        save(state, recipe, "digest", tmp_path).wait()
    assert [step for step, _ in checkpoints(tmp_path)] == [4]


def test_one_that_cannot_be_written_leaves_the_one_before(recipe: Recipe, tmp_path: Path) -> None:
    state = fresh(recipe)
    save(state, recipe, "digest", tmp_path).wait()
    state.step = 2
    (tmp_path / f"{CHECKPOINT}-00000002.partial").write_text("in the way")
    with pytest.raises(WeightsError, match=r"cannot be written .* the one before is kept"):
        save(state, recipe, "digest", tmp_path).wait()
    restored = fresh(recipe)
    assert resume(restored, recipe, "digest", tmp_path) and restored.step == 0


def test_a_folder_without_a_checkpoint_begins_anew(recipe: Recipe, tmp_path: Path) -> None:
    assert not resume(fresh(recipe), recipe, "digest", tmp_path)


def test_another_recipe_or_other_documents_are_refused(recipe: Recipe, tables: dict[str, Any], tmp_path: Path) -> None:
    state = fresh(recipe)
    save(state, recipe, "digest", tmp_path).wait()
    changed = copy.deepcopy(tables)
    changed["schedule"]["steps"] = 9
    with pytest.raises(WeightsError, match=r"another recipe \(schedule.steps 8 -> 9\)"):
        resume(state, from_dict(changed), "digest", tmp_path)
    with pytest.raises(WeightsError, match="other documents"):
        resume(state, recipe, "another digest", tmp_path)


@pytest.mark.parametrize("name", [STATE, ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_named_with_a_remedy(recipe: Recipe, tmp_path: Path, name: str) -> None:
    save(fresh(recipe), recipe, "digest", tmp_path).wait()
    ((_, home),) = checkpoints(tmp_path)
    content = bytearray((home / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (home / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"is damaged; remove that folder"):
        resume(fresh(recipe), recipe, "digest", tmp_path)


def test_as_many_are_kept_as_are_wished_and_one_before_a_damaged_one_is_used(
    recipe: Recipe, tables: dict[str, Any], tmp_path: Path
) -> None:
    state, keeping = fresh(recipe), from_dict(tables | {"checkpoint": {"keep": 2}})
    for state.step in (2, 4, 6):
        save(state, keeping, "digest", tmp_path).wait()
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 6]
    (tmp_path / f"{CHECKPOINT}-00000006" / ".metadata").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"\.metadata is damaged; remove that folder to go on from step 4"):
        resume(fresh(recipe), recipe, "digest", tmp_path)
    shutil.rmtree(tmp_path / f"{CHECKPOINT}-00000006")
    restored = fresh(recipe)
    assert resume(restored, recipe, "digest", tmp_path) and restored.step == 4


def test_one_of_an_older_version_is_not_passed_over(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"weeks of work")
    with pytest.raises(WeightsError, match="older version"):
        resume(fresh(recipe), recipe, "digest", tmp_path)
