import pytest
import torch
from torch import Tensor

from puna.adapters.attach import attach
from puna.adapters.merge import merge
from puna.adapters.shelf import Shelf
from puna.adapters.spec import Spec
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.kernels.low_rank import Factors
from puna.model.mask import Packed
from puna.model.transformer import Llama
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.tiny import random_ids, random_model, tiny_config

SPECS = {
    "broad": Spec(rank=3, targets=EVERYTHING),
    "few experts": Spec(rank=9, targets=frozenset({"experts"}), experts={1: (0, 3), 3: (2,)}),
    "attention": Spec(rank=2, alpha=1, targets=frozenset({"attention"})),
}
N = 9  # tokens of a text


@pytest.fixture
def adapters(config: LlamaConfig) -> dict[str, dict[str, Factors]]:
    return {name: adapter_for(config, spec, seed) for seed, (name, spec) in enumerate(SPECS.items())}


def rows_of(model: Llama, ids: list[list[int]]) -> tuple[Tensor, Tensor, Packed]:
    """Texts of the same length as a flat batch: ids, positions, and a store in which none sees another."""
    positions = torch.arange(len(ids[0])).expand(len(ids), -1)
    return torch.tensor(ids).flatten(), positions.flatten(), Packed(model.config.text, positions, positions * 0)


def test_each_row_of_a_mixed_batch_is_what_merged_weights_give_alone(
    model: Llama, config: LlamaConfig, adapters: dict[str, dict[str, Factors]]
) -> None:
    texts = [random_ids(N, seed) for seed in range(5)]
    numbers = [1, -1, 0, 2, 0]
    ids, positions, store = rows_of(model, texts)
    deltas = Shelf(model, adapters).deltas(torch.tensor(numbers).repeat_interleave(N))
    hidden = model.hidden(ids, positions, store, deltas=deltas)
    together = model.logits(hidden.states, deltas).unflatten(0, (5, N))
    for text, number, got in zip(texts, numbers, together, strict=True):
        alone = random_model(config)
        if number >= 0:
            merge(alone, list(adapters.values())[number])
        torch.testing.assert_close(got, alone(*rows_of(alone, [text])), rtol=1e-4, atol=1e-5)


def test_deltas_of_some_rows_are_those_of_these_rows(model: Llama, adapters: dict[str, dict[str, Factors]]) -> None:
    deltas = Shelf(model, adapters).deltas(torch.tensor([-1, 0, 2, 1]))
    x = torch.randn(4, 32)
    query = model.get_submodule("layers.0.attention.query")
    order = torch.tensor([2, 0])
    torch.testing.assert_close(deltas.of_rows(order).linear(query, x[order]), deltas.linear(query, x)[order])


def test_maps_that_nobody_in_the_batch_corrects_run_as_they_are(
    model: Llama, adapters: dict[str, dict[str, Factors]]
) -> None:
    deltas = Shelf(model, adapters).deltas(torch.tensor([2, -1]))
    x, scores, experts = torch.randn(2, 32), torch.ones(2, 1), torch.tensor([[0], [3]])
    part = model.get_submodule("layers.1.moe.experts")
    assert torch.equal(deltas.experts(part, x, scores, experts), part(x, scores, experts))


def test_adapters_that_cannot_be_served_are_refused_by_name(model: Llama, config: LlamaConfig) -> None:
    adapter = adapter_for(config, SPECS["attention"])
    attach(model, adapter)
    with pytest.raises(ConfigError, match=r"'one'.*detach"):
        Shelf(model, {"one": adapter})
    seeing = tiny_config()
    with pytest.raises(ConfigError, match=r"'two'.*projector"):
        Shelf(random_model(seeing), {"two": adapter_for(seeing, Spec(targets=frozenset({"projector"})))})
