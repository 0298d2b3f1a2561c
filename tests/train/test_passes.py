"""Training on several ranks: the gradients of one process, whatever is divided along which direction."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.tensor import DTensor

from puna.config import LlamaConfig
from puna.model.transformer import Llama, initialise
from puna.train import mesh as meshes
from puna.train.next_token import NextToken
from puna.train.pack import Batch
from puna.train.passes import Passes
from puna.train.recipe import LossRecipe, ParallelRecipe
from puna.train.spread import spread
from tests.reference.ranks import Ranks
from tests.reference.tiny import tiny_config

ROWS, ROW_LEN = 2, 32
LOSS = LossRecipe(balance=0.05, z=0.01, chunk=16)
TOLERANCE = 1e-5
"""Relative to the norm of a parameter's gradient: sums of some hundred float32 numbers in another order."""


def shaped(maverick: bool) -> LlamaConfig:
    """Scout-shaped: experts in every layer; maverick-shaped: in every other, and no norm of queries and keys."""
    config = tiny_config()
    layers = frozenset({1, 3}) if maverick else frozenset(range(4))
    return replace(config, text=replace(config.text, moe_layers=layers, qk_norm=not maverick))


def whole(config: LlamaConfig) -> Llama:
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def some_batch(config: LlamaConfig, number: int) -> Batch:
    """Rows of two documents and padding; the first row has a tile. Other numbers, other rows."""
    generator = torch.Generator().manual_seed(number)
    assert config.vision is not None and config.patch_id is not None
    ids = torch.randint(0, 40, (ROWS, ROW_LEN), generator=generator)
    cut = 9 + number % 5
    documents = (torch.arange(ROW_LEN) >= cut).long().repeat(ROWS, 1)
    documents[:, ROW_LEN - 3 :] = -1
    starts = torch.where(documents == 0, 0, torch.where(documents == 1, cut, ROW_LEN - 3))
    n = config.vision.tokens_per_tile
    ids[0, 14 : 14 + n] = config.patch_id
    weights = torch.rand(ROWS, ROW_LEN, generator=generator) * (documents != -1)
    weights[0, 13 : 13 + n] = 0
    size = config.vision.tile_size
    return Batch(
        ids=ids,
        positions=torch.arange(ROW_LEN) - starts,
        documents=documents,
        targets=ids.roll(-1, 1),
        weights=weights,
        tiles=torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8),
        n_tiles=1,
        pieces=((), ()),
    )


def gradients(layout: ParallelRecipe, maverick: bool, n_batches: int, compiled: bool = False) -> dict[str, float]:
    """Returns for each parameter of this rank's stage how far its gradient is from that of one process, relative."""
    config = shaped(maverick)
    mesh = meshes.build(layout, "cpu")
    readers = layout.replicate * layout.shard
    batches = [[some_batch(config, 10 * i + reader) for reader in range(readers)] for i in range(n_batches)]
    stage = spread(whole(config), mesh, LOSS, torch.float32, compiled=compiled)
    measured = Passes(stage, torch.float32, torch.device("cpu"))([each[mesh.reader] for each in batches])
    alone = whole(config)
    loss = NextToken(alone, balance=LOSS.balance, z=LOSS.z, chunk=LOSS.chunk)
    total = torch.stack([batch.weights.sum() for each in batches for batch in each]).sum()
    for each in batches:
        for batch in each:
            loss(batch, total, share=1 / (n_batches * readers)).total.backward()
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    found = {}
    for name, parameter in stage.model.named_parameters():
        gradient, of_one = parameter.grad, expected[name]
        assert isinstance(gradient, DTensor) and of_one is not None, name
        found[name] = float((gradient.full_tensor() - of_one).norm() / of_one.norm().clamp(min=1e-12))
    assert len(measured) == n_batches
    return found


def check(ranks: Ranks, layout: ParallelRecipe, maverick: bool, n_batches: int = 1, compiled: bool = False) -> None:
    names: set[str] = set()
    for found in ranks.run(gradients, layout, maverick, n_batches, compiled):
        assert max(found.values()) < TOLERANCE, {name: error for name, error in found.items() if error >= TOLERANCE}
        names |= set(found)
    assert names == {name for name, _ in whole(shaped(maverick)).named_parameters()}


TWO = [{"shard": 2}, {"replicate": 2}, {"context": 2}, {"tensor": 2}, {"shard": 2, "expert": 2}, {"pipeline": 2}]
FOUR = [
    {"shard": 4, "expert": 2},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "expert": 4},
    {"context": 2, "shard": 2},
    {"context": 2, "tensor": 2, "expert": 2},
    {"pipeline": 2, "shard": 2, "expert": 2},
    {"replicate": 2, "shard": 2, "expert": 2, "recompute": True},
]


@pytest.mark.parametrize("maverick", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", TWO, ids=str)
def test_two_ranks_have_the_gradients_of_one_process(two_ranks: Ranks, layout: dict[str, int], maverick: bool) -> None:
    check(two_ranks, ParallelRecipe(**layout), maverick, 2 if layout.get("pipeline") else 1)


@pytest.mark.slow
@pytest.mark.parametrize("maverick", [False, True])
@pytest.mark.parametrize("layout", FOUR, ids=str)
def test_four_ranks_have_the_gradients_of_one_process(
    four_ranks: Ranks, layout: dict[str, int], maverick: bool
) -> None:
    check(four_ranks, ParallelRecipe(**layout), maverick, 2)
