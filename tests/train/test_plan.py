"""A plan's bytes are those that ranks hold; what cannot be trained is refused; every recipe can be planned."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from puna import cli
from puna.kernels import training
from puna.plan.activations import has_kernels
from puna.plan.shares import Training, trained
from puna.train import mesh as meshes
from puna.train.loop import model_config
from puna.train.passes import Passes
from puna.train.plan import job_of, plan
from puna.train.recipe import ParallelRecipe, Recipe, from_dict, read
from puna.train.shards import local
from puna.train.spread import spread
from puna.train.state import begin
from puna.train.update import on_ranks
from tests.reference.ranks import Ranks
from tests.train.test_passes import LOSS, shaped, some_batch, whole

RECIPES = Path(__file__).parents[2] / "recipes"


class Bytes(NamedTuple):
    weights: int
    gradients: int
    optimizer: int


def of_this_rank(recipe: Recipe, maverick: bool) -> Bytes:
    """What a rank really has, once every parameter has a gradient."""
    mesh = meshes.build(recipe.parallel, "cpu")
    stage, optimizer = on_ranks(whole(shaped(maverick)), mesh, recipe)
    for parameter in stage.parameters():
        parameter.grad = parameter.detach().clone()
    return Bytes(
        sum(local(each).nbytes for each in stage.parameters()),
        sum(local(each.grad).nbytes for each in stage.parameters() if each.grad is not None),
        sum(local(each).nbytes for each in optimizer.tensors().values()),
    )


def check(ranks: Ranks, tables: dict[str, Any], layout: dict[str, int], maverick: bool) -> None:
    tables["parallel"], tables["batch"]["accumulate"] = layout, 4
    recipe = from_dict(tables)
    found = ranks.run(of_this_rank, recipe, maverick)
    planned = {held.rank: held for held in plan(recipe, shaped(maverick)).ranks}
    each = recipe.parallel.world // recipe.parallel.pipeline // recipe.parallel.replicate
    for rank, real in enumerate(found):
        replicas = each * recipe.parallel.replicate
        first = planned[rank // replicas * replicas + rank % each]
        assert real == Bytes(first.weights, first.gradients, first.optimizer), (rank, layout)


TWO = [{"shard": 2}, {"tensor": 2}, {"shard": 2, "expert": 2}, {"pipeline": 2}]
FOUR = [
    {"shard": 4, "expert": 2},
    {"shard": 4},
    {"shard": 2, "tensor": 2, "expert": 4},
    {"context": 2, "shard": 2},
    {"context": 2, "tensor": 2, "expert": 2},
    {"pipeline": 2, "shard": 2, "expert": 2},
    {"replicate": 2, "shard": 2, "expert": 2},
]


@pytest.mark.parametrize("layout", TWO, ids=str)
def test_two_ranks_hold_what_was_planned(two_ranks: Ranks, tables: dict[str, Any], layout: dict[str, int]) -> None:
    check(two_ranks, tables, layout, maverick=True)


@pytest.mark.slow
@pytest.mark.parametrize("maverick", [False, True])
@pytest.mark.parametrize("layout", FOUR, ids=str)
def test_four_ranks_hold_what_was_planned(
    four_ranks: Ranks, tables: dict[str, Any], layout: dict[str, int], maverick: bool
) -> None:
    check(four_ranks, tables, layout, maverick)


def whole_in_a_stage(layout: dict[str, Any], n_batches: int) -> tuple[int, int]:
    """Bytes of weights that a stage keeps together, and of gradients that it keeps whole, as its last batch ends."""
    config = shaped(maverick=False)
    mesh = meshes.build(ParallelRecipe(**layout), "cpu")
    stage = spread(whole(config), mesh, LOSS, torch.bfloat16)
    seen: list[tuple[int, int]] = []
    post_backward = FSDPParamGroup.post_backward

    def watched(self: FSDPParamGroup, *unused: Any) -> None:
        states = fully_shard.state(stage)._state_ctx.all_states  # type: ignore[attr-defined]
        parts = [part for state in states for group in state._fsdp_param_groups for part in group.fsdp_params]
        gradients = [each.unsharded_accumulated_grad for each in parts]
        together = sum(x.untyped_storage().nbytes() for each in parts for x in each.all_gather_outputs)
        seen.append((together, sum(each.nbytes for each in gradients if each is not None)))
        post_backward(self, *unused)

    FSDPParamGroup.post_backward = watched  # type: ignore[method-assign]
    try:
        Passes(stage, torch.bfloat16, torch.device("cpu"))([some_batch(config, i) for i in range(n_batches)])
    finally:
        FSDPParamGroup.post_backward = post_backward  # type: ignore[method-assign]
    return max(each for each, _ in seen), max(each for _, each in seen)


@pytest.mark.slow
def test_a_stage_keeps_its_weights_together_and_its_gradients_whole(two_ranks: Ranks) -> None:
    layout: dict[str, Any] = {"pipeline": 2}
    for stage, (weights, gradients) in enumerate(two_ranks.run(whole_in_a_stage, layout, 4)):
        used = sum(part.used * part.times for part in trained(shaped(maverick=False), Training(**layout), stage, 0))
        assert (weights, gradients) == (used * 2, used * 4)


def test_one_process_holds_what_was_planned(tables: dict[str, Any]) -> None:
    recipe = from_dict(tables)
    state, (held,) = begin(recipe, model_config(recipe)), plan(recipe, model_config(recipe)).ranks
    assert sum(each.nbytes for each in state.model.parameters()) == held.weights == held.gradients
    assert sum(each.nbytes for each in state.optimizer.tensors().values()) == held.optimizer == held.saving


def test_a_processor_in_bfloat16_is_planned_with_its_kernels(tables: dict[str, Any]) -> None:
    config = model_config(from_dict(tables))
    wide = from_dict(tables | {"compute": tables["compute"] | {"dtype": "float32"}})
    assert job_of(from_dict(tables), config).shape.kernels == (has_kernels(config.text) and training.available())
    assert not job_of(wide, config).shape.kernels


def test_activations_are_those_of_whole_layers_or_of_their_inputs_and_one_layer(tables: dict[str, Any]) -> None:
    tables["parallel"], tables["batch"]["accumulate"] = {"pipeline": 2, "recompute": True}, 4
    recipe = from_dict(tables)
    first, last = plan(recipe, model_config(recipe)).ranks
    for held in (first, last):
        assert held.activations == held.activations_recomputed < held.activations_kept
        passes = held.gathered + held.activations + held.backward
        assert held.peak == held.stays + held.saving + max(passes, held.update)
    assert first.activations_kept > last.activations_kept  # two batches are under way in the first stage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("parallel.tensor=3", "parallel.tensor: 3 does not divide n_heads, 16; use one of 1, 2, 4, 8, 16"),
        ("parallel.expert=16", "parallel.expert: 16 does not divide shard x context x tensor, 8; use one of 1, 2, 4"),
        ("batch.accumulate=12", "batch.accumulate: 12 batches a step"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: str, reason: str
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    assert cli.main(["train", "recipes/research-1b.toml", "--dry-run", "--set", change]) != 0
    assert reason in capsys.readouterr().err


def dry_run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(RECIPES.parent)
    assert not cli.main(["train", f"recipes/{name}.toml", "--dry-run", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


WRITTEN = {path.stem: path.read_text("utf-8") for path in sorted(RECIPES.glob("*.toml"))}
TRAINED = [name for name, text in WRITTEN.items() if "[schedule]" in text and "[objective]" not in text]  # not tuned
TRAINED.remove("guard-tune")  # begins with a model that a command makes first
EVERYDAY = {"cria", "cria-first", "cria-names", "research-1b"}
FITS = {"research-1b": True, "scout-64": True, "scout-512": True, "maverick-512": True}


@pytest.mark.parametrize("name", [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.slow) for n in TRAINED])
def test_every_recipe_can_be_planned_and_divides_evenly(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dry_run(name, capsys, monkeypatch)
    assert found["evenness"] > 0.999
    assert found["missing_bytes"] == 0 if name in EVERYDAY or name in FITS else found["missing_bytes"] > 10e9
    assert ("cria" in name) or found["parallel"]["world"] == (8 if name == "research-1b" else int(name.split("-")[-1]))


def test_a_recipe_whose_model_is_made_first_can_be_read_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    name = read("recipes/guard-tune.toml").model.preset
    if not Path(name).exists():
        assert cli.main(["train", "recipes/guard-tune.toml", "--dry-run"]) == 2
        assert f"{name} does not exist" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "total", "active"), [("scout", 109, 17), ("maverick", 402, 17)])
def test_card_sizes_take_at_least_sixteen_bytes_a_parameter(
    name: str, total: int, active: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dry_run(f"{name}-8", capsys, monkeypatch)
    billions = {part: round(n / 1e9) for part, n in found["parameters"].items()}
    assert billions == {"total": total, "active": active}
    assert sum(held["stays"] for held in found["ranks"]) >= 16 * found["parameters"]["total"]


def test_a_plan_for_people_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    command = ["train", "recipes/research-1b.toml", "--dry-run", "--gpu-memory"]
    assert not cli.main([*command, "80"]) and "It fits." in capsys.readouterr().out
    assert not cli.main([*command, "20"]) and "It does not fit: 17.9 GB are missing." in capsys.readouterr().out


def test_experts_that_do_not_go_round_leave_ranks_empty_and_the_plan_says_so(tables: dict[str, Any]) -> None:
    tables["parallel"], tables["batch"]["accumulate"] = {"shard": 8, "expert": 2}, 8
    recipe = from_dict(tables)
    assert plan(recipe, model_config(recipe)).evenness < 0.9
