"""Rates and first weights for another width and depth: each kind of parameter by its rule, and nothing in the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model.transformer import Llama, initialise
from puna.train.coordinates import toy
from puna.train.loop import model_config
from puna.train.optim import Optimizer
from puna.train.recipe import OptimizerRecipe, from_dict
from puna.train.state import start_weights
from puna.train.transfer import Scale, scales
from tests.reference.ranks import Ranks
from tests.reference.tiny import tiny_config
from tests.train.runs import divided, finished, logged

RECIPE = OptimizerRecipe(lr=0.01, weight_decay=0.1, momentum=0.9, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1e9)
HALF = 2**-0.5


def wide(config: LlamaConfig) -> LlamaConfig:
    """Twice the width, heads of the same size."""
    text = config.text
    twice = {
        name: 2 * getattr(text, name) for name in ("width", "n_heads", "n_kv_heads", "expert_width", "dense_width")
    }
    return replace(config, text=replace(text, **twice))


def deep(config: LlamaConfig) -> LlamaConfig:
    """Twice as many layers."""
    text = config.text
    kinds = {name: getattr(text, name) | {i + 4 for i in getattr(text, name)} for name in ("rope_layers", "moe_layers")}
    return replace(config, text=replace(text, n_layers=2 * text.n_layers, **kinds))


def test_a_model_transfers_to_itself_without_any_change() -> None:
    found = scales(tiny_config(), tiny_config(), 1.0)
    assert set(found) == {name for name, _ in Llama(tiny_config()).named_parameters()}
    assert set(found.values()) == {Scale()}


def test_twice_the_width_has_half_of_adamws_rate_for_maps_and_the_same_for_tables() -> None:
    found = scales(wide(tiny_config()), tiny_config(), 1.0)
    assert found["embedding.weight"] == Scale(eps=0.5)
    assert found["norm.weight"] == found["layers.1.attention_norm.weight"] == Scale(eps=0.5)
    head, router = found["head.weight"], found["layers.1.moe.router.weight"]
    assert head == router == pytest.approx((HALF, 0.5, 1.0, 1.0))
    for name in ("layers.0.attention.query.weight", "layers.1.moe.experts.gate_up", "layers.0.mlp.down.weight"):
        assert found[name] == pytest.approx((1.0, 0.5, HALF, 0.5)), name
    assert found["projector.weight"] == pytest.approx((1.0, 1.0, 1.0, 0.5))  # reads a tower as wide as before
    assert found["vision.layers.0.attention.query.weight"] == Scale()


@pytest.mark.parametrize(("exponent", "within", "writes"), [(1.0, 1.0, HALF), (0.5, HALF, 1.0)])
def test_twice_the_depth_makes_branches_smaller(exponent: float, within: float, writes: float) -> None:
    """Folded into what writes, whose first weights are smaller by the root of the depth in any case."""
    found = scales(deep(tiny_config()), tiny_config(), exponent)
    branch = 2**-exponent
    assert found["layers.6.attention.query.weight"] == pytest.approx((1.0, within, within, branch))
    assert found["layers.5.moe.router.weight"] == pytest.approx((1.0, within, 1.0, branch))
    assert found["layers.5.attention_norm.weight"] == pytest.approx((1.0, within, 1.0, branch))
    for name in ("layers.5.moe.experts.down", "layers.5.moe.shared.down.weight", "layers.4.attention.output.weight"):
        assert found[name] == pytest.approx((writes, 0.5, 0.5, 1.0)), name
    assert found["head.weight"] == found["embedding.weight"] == Scale()


def test_muons_updates_of_a_wider_model_have_the_spectral_norm_of_the_base() -> None:
    largest = []
    for config in (toy(tiny_config(), 32), toy(tiny_config(), 64)):
        model = Llama(config)
        initialise(model, torch.Generator().manual_seed(0))
        optimizer = Optimizer(model.named_parameters(), RECIPE, scales=scales(config, toy(tiny_config(), 32), 1.0))
        weight = model.layers[0].get_parameter("attention.query.weight")
        before = weight.detach().clone() * (1 - RECIPE.lr * RECIPE.weight_decay)
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        optimizer.step(1.0)
        largest.append(float(torch.linalg.matrix_norm(weight.detach() - before, 2)))
    assert largest[1] == pytest.approx(largest[0], rel=0.1)  # Newton-Schulz leaves singular values within a band
    assert largest[0] == pytest.approx(0.01 * 0.2 * 32**0.5, rel=0.25)


def test_decay_is_learning_rate_times_weight_decay_at_any_width() -> None:
    config = wide(tiny_config())
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    recipe = replace(RECIPE, matrices="adamw")
    optimizer = Optimizer(model.named_parameters(), recipe, scales=scales(config, tiny_config(), 1.0))
    before = {name: master.clone() for name, master in optimizer.masters().items()}
    optimizer.step(1.0)  # no gradients: nothing but decay
    for name in ("head.weight", "layers.0.attention.query.weight"):
        torch.testing.assert_close(optimizer.masters()[name], before[name] * (1 - 0.01 * 0.1))


class Branch(nn.Module):
    """x + factor * down(x), the factor in the forward pass."""

    def __init__(self, factor: float, down: torch.Tensor) -> None:
        super().__init__()
        self.factor = factor
        self.down = nn.Parameter(down.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.factor * (x @ self.down.T)


def test_a_folded_factor_trains_as_one_in_the_forward_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x, target = (torch.randn(8, 8, generator=generator) for _ in range(3))
    recipe, factor = replace(RECIPE, matrices="adamw", eps=1e-3), 0.25
    plain, folded = Branch(factor, weight), Branch(1.0, weight * factor)
    of_plain = Optimizer(plain.named_parameters(), recipe)
    scale = Scale(start=factor, adamw=factor, eps=1 / factor)
    of_folded = Optimizer(folded.named_parameters(), recipe, scales={"down": scale})
    for _ in range(10):
        for model, optimizer in ((plain, of_plain), (folded, of_folded)):
            (model(x) - target).square().mean().backward()
            optimizer.step(1.0)
    torch.testing.assert_close(folded(x), plain(x))


def test_heads_of_another_size_and_layers_that_the_base_lacks_are_refused() -> None:
    config = tiny_config()
    other = replace(config, text=replace(config.text, head_dim=16))
    with pytest.raises(
        ConfigError, match=r"transfer.base: heads of 8 numbers, those of the base of 16; keep their size"
    ):
        scales(config, other, 1.0)
    dense = replace(config, text=replace(config.text, moe_layers=frozenset()))
    with pytest.raises(ConfigError, match=r"transfer.base: it has no layers\.\*\.moe\.router\.weight; take"):
        scales(config, dense, 1.0)


def test_a_recipe_names_its_base_and_begins_with_the_weights_that_follow(tables: dict[str, Any]) -> None:
    recipe = from_dict(tables)
    config = model_config(recipe)
    plain = start_weights(recipe, config)
    tables["transfer"] = {"base": tables["model"]["preset"]}
    same = start_weights(from_dict(tables), config)
    assert all(a.equal(b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    for wrong, message in (
        ({"base": "none.json"}, "transfer.base: none.json"),
        ({"base": "", "depth_exponent": 2}, "exp"),
    ):
        tables["transfer"] = wrong
        with pytest.raises(ConfigError, match=message):
            start_weights(from_dict(tables), config)


@pytest.mark.slow
def test_two_ranks_train_a_transferred_model_as_one_process_does(
    two_ranks: Ranks, tables: dict[str, Any], tmp_path: Path
) -> None:
    small = tmp_path / "base.json"
    tables["transfer"] = {"base": str(small)}
    tables["compute"]["dtype"], tables["data"]["held_out"] = "float32", ""
    tables["schedule"] |= {"steps": 6, "decay_steps": 2}
    small.write_text(half_as_wide(Path(tables["model"]["preset"])), encoding="utf-8")
    tables["batch"] |= {"rows": 1, "accumulate": 2}
    assert finished(tables, str(tmp_path / "one"))
    assert all(two_ranks.run(finished, divided(tables, shard=2, expert=2), str(tmp_path / "ranks")))
    for a, b in zip(logged(tmp_path / "one", "loss"), logged(tmp_path / "ranks", "loss"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)  # float32 in another order, six steps of Muon


def half_as_wide(file: Path) -> str:
    """The configuration of a model half as wide, with heads of the same size."""
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config["text_config"]
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        text[name] //= 2
    text["intermediate_size_mlp"] //= 2
    return json.dumps(config)
