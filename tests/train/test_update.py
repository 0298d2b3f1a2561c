"""A run on several ranks is the run of one process: the same losses, and checkpoints that any number of ranks reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from puna.model.transformer import Llama
from puna.train import shards
from puna.train.loop import model_config, train
from puna.train.recipe import from_dict
from puna.train.state import checkpoints, resume, start_on_ranks
from puna.train.team import Team
from puna.train.update import join
from puna.weights.checkpoint import save_hf
from tests.reference.doubled import Doubled
from tests.reference.ranks import Ranks
from tests.reference.tiny import random_model
from tests.train.runs import divided, logged, silent

PROVED = 1e-7
"""Relative, of losses and norms: what float64 makes of its own rounding, 1e-16, in twenty steps of Muon; 2.4e-10 was
seen of losses. A float32 run makes 1e-4 of its 1e-7, so that there no bound could tell a mistake from rounding."""
SLACK = 24 << 20
"""Bytes that a process grows by besides: buffers of the libraries, and pages that its allocator keeps."""
KEPT = 1e-5
"""Relative, of weights and moments behind the twentieth step, which grow apart faster than losses; second moments are
squares of single gradients. 1.03e-7 was seen of those of a table in the tower. It is what gradients are held to."""


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


def doubled(tables: dict[str, Any], run: str) -> bool:
    """Trains here to the end, in double precision throughout."""
    with Doubled():
        return train(from_dict(tables), run, silent).finished


@pytest.fixture
def exact(tables: dict[str, Any]) -> dict[str, Any]:
    """Four batches a step, float32, 20 steps."""
    tables["batch"] |= {"rows": 1, "accumulate": 4}
    tables["compute"] |= {"dtype": "float32"}
    tables["data"]["held_out"] = ""
    tables["optimizer"]["lr"] = 1e-3
    tables["schedule"] |= {"steps": 20}
    return tables


SHAPES = {"scout": ([0, 1, 2, 3], True), "maverick": ([1, 3], False)}
"""Layers with experts, and whether queries and keys are normed."""


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of one process lie, which are made once."""
    return tmp_path_factory.mktemp("one")


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, exact: dict[str, Any], tiny: Path, of_one_process: Path) -> str:
    """Has the recipe train a model of that shape."""
    layers, normed = SHAPES[request.param]
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"moe_layers": layers, "use_qk_norm": normed}
    file = of_one_process / f"{request.param}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    exact["model"]["preset"] = str(file)
    exact["data"]["store"] = str(of_one_process / "store")  # a recipe names it, and all of these runs are of one
    return str(request.param)


ALONE = [{"shard": 2}, {"replicate": 2}, {"context": 2}, {"tensor": 2}, {"shard": 2, "expert": 2}, {"pipeline": 2}]
TOGETHER = [
    {"shard": 4, "expert": 2},
    {"shard": 2, "tensor": 2},
    {"context": 2, "shard": 2},
    {"pipeline": 2, "shard": 2, "expert": 2},
    {"replicate": 2, "shard": 2, "expert": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [*ALONE, *TOGETHER], ids=str)
def test_twenty_steps_are_those_of_one_process(
    two_ranks: Ranks,
    four_ranks: Ranks,
    exact: dict[str, Any],
    shape: str,
    parallel: dict[str, int],
    of_one_process: Path,
    tmp_path: Path,
) -> None:
    """Losses, gradient norms, and in the end every weight and moment. Gradients are clipped in each of these steps."""
    alone, together = of_one_process / shape, tmp_path / "ranks"
    if not alone.exists():
        assert doubled(exact, str(alone))
    ranks = four_ranks if parallel in TOGETHER else two_ranks
    assert all(ranks.run(doubled, divided(exact, **parallel), str(together)))
    for key in ("loss", "grad_norm", "balance"):
        expected, found = logged(alone, key), logged(together, key)
        assert len(expected) == len(found) == 20
        assert max(abs(a - b) / a for a, b in zip(expected, found, strict=True)) < PROVED, key
    assert min(logged(alone, "grad_norm")) > exact["optimizer"]["clip_norm"]
    with Doubled():
        expected_state, found_state = masters(exact, str(alone)), masters(exact, str(together))
    assert expected_state.keys() == found_state.keys()
    for name, tensor in expected_state.items():
        assert tensor.dtype == torch.float64
        assert (found_state[name] - tensor).norm() <= KEPT * tensor.norm(), name


def started_with(tables: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The whole weights that this rank's stage begins with; those of other stages are missing."""
    recipe = from_dict(tables)
    config = model_config(recipe)
    state, _ = Team.of(recipe, config).begin(recipe, config)
    return {name: shards.whole(shards.local(p), p) for name, p in state.optimizer.masters().items()}


@pytest.mark.parametrize(
    "parallel",
    [
        {"pipeline": 2},
        pytest.param({"shard": 2, "expert": 2}, marks=pytest.mark.slow),
        pytest.param({"tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"shard": 2, "tensor": 2, "expert": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("earlier", [False, True])
def test_ranks_begin_with_the_bits_of_one_process(
    request: pytest.FixtureRequest, exact: dict[str, Any], tmp_path: Path, parallel: dict[str, int], earlier: bool
) -> None:
    """At random, or with the weights of a checkpoint: each keeps its parts of them."""
    if earlier:
        config = model_config(from_dict(exact))
        save_hf(random_model(config), config, tmp_path / "earlier")
        exact["model"]["start"] = str(tmp_path / "earlier")
    ranks: Ranks = request.getfixturevalue("four_ranks" if len(parallel) > 2 else "two_ranks")
    alone = started_with(exact)
    assert len(alone) > 50
    parts: dict[str, torch.Tensor] = {}
    for found in ranks.run(started_with, divided(exact, **parallel)):
        parts |= found
    assert parts.keys() == alone.keys()
    assert all(part.equal(alone[name]) for name, part in parts.items())


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


class Memory(NamedTuple):
    """Bytes of a rank: how much it grew at most while the model began, what it keeps, and the largest parameter."""

    peak: int
    kept: int
    largest: int


def begun(tables: dict[str, Any]) -> Memory:
    """Begins the model here and measures what that took, by the kernel's own count of this process's pages."""
    recipe = from_dict(tables)
    config = model_config(recipe)
    mesh = join(recipe, config, "cpu")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the highest count so far
    before = _pages("VmRSS")
    stage, optimizer = start_on_ranks(recipe, config, mesh)
    kept = [*stage.parameters(), *optimizer.tensors().values()]
    return Memory(
        _pages("VmHWM") - before,
        sum(shards.local(each).nbytes for each in kept),
        max(4 * each.numel() for each in stage.parameters()),
    )


def _pages(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_no_rank_ever_holds_the_whole_model(
    four_ranks: Ranks, exact: dict[str, Any], tiny: Path, tmp_path: Path, earlier: bool
) -> None:
    """Of 150 MB in float32 each rank keeps its parts, and meanwhile a few times the largest parameter besides."""
    document = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    document["text_config"] |= {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_local_experts": 8,
        "num_hidden_layers": 12,
        "moe_layers": list(range(12)),
        "no_rope_layers": [1, 1, 1, 0] * 3,
        "layer_types": [*["chunked_attention"] * 3, "full_attention"] * 3,
    }
    (tmp_path / "large.json").write_text(json.dumps(document), encoding="utf-8")
    exact["model"]["preset"] = str(tmp_path / "large.json")
    config = model_config(from_dict(exact))
    with torch.device("meta"):
        whole = 4 * sum(parameter.numel() for parameter in Llama(config).parameters())
    assert whole > 140e6
    if earlier:
        save_hf(random_model(config), config, tmp_path / "earlier")
        exact["model"]["start"] = str(tmp_path / "earlier")
    for rank in four_ranks.run(begun, divided(exact, shard=4, expert=4)):
        print(whole, rank)
        assert rank.peak < rank.kept + 4 * rank.largest + SLACK < rank.kept + whole / 2
