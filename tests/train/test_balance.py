"""Loads become even, scores never see the bias, and the last step routes without it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from puna.model.moe import MoE
from puna.train.balance import Balance
from puna.train.loop import train
from puna.train.recipe import ScheduleRecipe, from_dict
from tests.reference.tiny import tiny_config
from tests.train.runs import logged, pause_at, silent

SCHEDULE = ScheduleRecipe(steps=10, warmup_steps=0, decay_steps=4, final_fraction=0.0)


def moe() -> MoE:
    layer = MoE(tiny_config().text)
    for number, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return layer


def balance(layer: MoE, rate: float = 0.01) -> Balance:
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"3": torch.nn.ModuleDict({"moe": layer})})})
    return Balance(model, [1, 3], SCHEDULE, rate)  # layer 1 is another stage's


def test_biases_move_against_the_load_and_keep_their_mean() -> None:
    found = balance(moe())
    found.learn(torch.tensor([[0.0, 0, 0, 1], [0.5, 0.25, 0.25, 0.0]]))
    (bias,) = found.biases.values()
    assert list(found.biases) == ["layers.3.moe.bias"]
    torch.testing.assert_close(bias, torch.tensor([-0.01, 0.0, 0.0, 0.01]))


def test_a_router_with_a_favourite_becomes_even() -> None:
    layer, x = moe(), torch.randn(512, 32, generator=torch.Generator().manual_seed(9))
    x[:, 0] = 1
    with torch.no_grad():
        layer.router.weight[2, 0] += 3
    found = balance(layer, rate=0.02)
    loads = []
    for _ in range(200):
        found.apply(0)
        with torch.no_grad():
            _, route = layer(x)
        load = torch.bincount(route.experts.flatten(), minlength=4) / 512
        loads.append(float(load.max()))
        found.learn(torch.stack([load, load]))
    assert loads[-1] < 0.3 < 0.5 < loads[0]


def test_scores_and_gradients_do_not_see_the_bias() -> None:
    layer, x = moe(), torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, route = layer(x)
    layer.bias = torch.full((4,), 5.0)  # the same for all: the choice stays
    with torch.no_grad():
        biased, again = layer(x)
    assert torch.equal(plain, biased) and torch.equal(route.experts, again.experts)
    layer.bias = torch.tensor([0.0, 0.0, 1e6, 0.0])
    out, route = layer(x)
    assert route.experts.eq(2).all()
    out.sum().backward()
    assert layer.router.weight.grad is not None and layer.router.weight.grad[2].norm() > 0
    assert layer.router.weight.grad[[0, 1, 3]].norm() == 0


def test_gradients_of_the_chosen_score_are_those_of_differences() -> None:
    layer = moe().double()
    x = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def of_router(weight: torch.Tensor) -> torch.Tensor:
        logits = x @ weight.T
        best, experts = logits.topk(1, dim=-1)
        out: torch.Tensor = layer.experts(x, best.sigmoid(), experts)
        return out

    weight = layer.router.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of_router, weight, atol=1e-6)


def test_the_bias_is_taken_back_while_the_learning_rate_decays() -> None:
    layer = moe()
    found = balance(layer)
    found.learn(torch.tensor([[0.0, 0, 0, 1], [1.0, 0, 0, 0]]))
    sizes = []
    for step in range(10):
        found.apply(step)
        assert layer.bias is not None
        sizes.append(float(layer.bias.abs().max()))
    assert sizes[:6] == [sizes[0]] * 6 and sizes[-1] == 0
    assert all(a > b for a, b in pairwise(sizes[5:]))


def test_no_rate_leaves_the_router_alone() -> None:
    layer = moe()
    found = balance(layer, rate=0.0)
    found.apply(0)
    assert layer.bias is None and not found.biases


def test_a_paused_run_with_biases_goes_on_with_the_same_bits(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["loss"] |= {"balance": 0.0, "bias_rate": 0.05}
    tables["data"]["held_out"] = ""

    assert train(from_dict(tables), tmp_path / "one", silent).finished
    assert not train(from_dict(tables), tmp_path / "two", pause_at(3)).finished
    assert train(from_dict(tables), tmp_path / "two", silent).finished
    assert logged(tmp_path / "one", "loss") == logged(tmp_path / "two", "loss")
