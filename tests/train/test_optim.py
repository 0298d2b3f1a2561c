"""The optimiser: Muon on matrices, AdamW on the rest, float32 masters, and the schedule."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from puna.model.transformer import Llama, initialise
from puna.train.optim import Optimizer, cast, is_matrix, learning_rate, orthogonalise
from puna.train.recipe import OptimizerRecipe, ScheduleRecipe
from tests.reference.tiny import tiny_config

RECIPE = OptimizerRecipe(lr=0.01, weight_decay=0.1, momentum=0.9, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1e9)


def tiny_model() -> Llama:
    model = Llama(tiny_config())
    initialise(model, torch.Generator().manual_seed(0))
    return model


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_the_schedule_warms_up_stays_and_decays() -> None:
    schedule = ScheduleRecipe(steps=100, warmup_steps=10, decay_steps=20, final_fraction=0.1)
    shares = [learning_rate(schedule, step) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == 1.0 and shares[10:80] == [1.0] * 70
    assert shares[80] == 1.0 and shares[90] == pytest.approx(0.55) and shares[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(shares[80:]))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_keep_their_directions(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalise(matrix[None])[0].float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3  # five steps bring all values into this band, not to 1
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert nn.functional.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_stacked_matrices_are_orthogonalised_as_if_each_were_alone() -> None:
    torch.manual_seed(1)
    stack = torch.randn(5, 12, 20)
    alone = torch.stack([orthogonalise(matrix[None])[0] for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, atol=2**-7, rtol=0.0)  # a rounding step of bfloat16


def test_muon_updates_experts_and_linear_maps_and_adamw_the_rest() -> None:
    model = tiny_model()
    by_adamw = {name for name, parameter in model.named_parameters() if not is_matrix(name, parameter)}
    assert {"embedding.weight", "head.weight", "norm.weight", "vision.class_token", "vision.positions"} <= by_adamw
    assert "layers.1.moe.router.weight" in by_adamw and "layers.1.moe.experts.gate_up" not in by_adamw
    assert "layers.0.attention.query.weight" not in by_adamw and "projector.weight" not in by_adamw


def test_adamw_equals_the_one_of_torch() -> None:
    model = tiny_model()
    named = [(n, p) for n, p in model.named_parameters() if not is_matrix(n, p)]
    copies = {n: nn.Parameter(p.detach().clone()) for n, p in named}
    decayed = [p for n, p in copies.items() if n in ("head.weight", "vision.patch.weight")]
    others = [p for n, p in copies.items() if n not in ("head.weight", "vision.patch.weight")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    twin = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    optimizer = Optimizer(model.named_parameters(), RECIPE)
    for seed in range(3):
        give_gradients(model, seed)
        for name, parameter in named:
            assert parameter.grad is not None
            copies[name].grad = parameter.grad.clone()
        optimizer.step(1.0)
        twin.step()
    for name, parameter in named:
        torch.testing.assert_close(parameter.detach(), copies[name].detach(), atol=1e-6, rtol=1e-5)


def test_muon_equals_a_loop_over_single_matrices() -> None:
    model = tiny_model()
    name = "layers.1.moe.experts.gate_up"
    weight = dict(model.named_parameters())[name]
    start = weight.detach().clone()
    optimizer = Optimizer(model.named_parameters(), RECIPE)
    give_gradients(model, 0)
    gradient = weight.grad.clone()  # type: ignore[union-attr]
    optimizer.step(1.0)
    for expert in range(len(start)):
        for half in (slice(0, 24), slice(24, 48)):
            momentum = 0.1 * gradient[expert, half]
            direction = orthogonalise((0.1 * gradient[expert, half] + 0.9 * momentum)[None])[0].float()
            expected = start[expert, half] * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 32**0.5 * direction
            torch.testing.assert_close(
                weight.detach()[expert, half], expected, atol=1e-4, rtol=0.0
            )  # bfloat16 direction


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_what_looks_at_pictures_has_a_rate_of_its_own(matrices: str) -> None:
    model = tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    still = replace(RECIPE, matrices=matrices, weight_decay=0.0, vision_lr_scale=0.0)
    optimizer = Optimizer(model.named_parameters(), still)
    give_gradients(model, 0)
    optimizer.step(1.0)
    looks = {name for name in before if name.startswith(("vision.", "projector."))}
    assert looks and looks == {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}


def test_masters_keep_what_bfloat16_parameters_cannot_hold() -> None:
    model = tiny_model()
    optimizer = Optimizer(model.named_parameters(), replace(RECIPE, lr=1e-6))
    cast(model, torch.bfloat16)
    start = optimizer.masters()["norm.weight"].clone()
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step(1.0)
    assert not optimizer.masters()["norm.weight"].equal(start)
    for name, parameter in model.named_parameters():
        assert parameter.detach().equal(optimizer.masters()[name].bfloat16())


def test_gradients_are_clipped_together_and_a_norm_that_is_not_finite_changes_nothing() -> None:
    norms = []
    model = tiny_model()
    optimizer = Optimizer(model.named_parameters(), replace(RECIPE, clip_norm=1.0))
    give_gradients(model, 0)
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm()  # type: ignore[union-attr]
    norms.append(optimizer.step(1.0))
    torch.testing.assert_close(norms[0], expected)
    before = {name: master.clone() for name, master in optimizer.masters().items()}
    give_gradients(model, 1)
    model.norm.weight.grad[0] = float("inf")  # type: ignore[index]
    assert not torch.isfinite(optimizer.step(1.0))
    assert all(master.equal(before[name]) for name, master in optimizer.masters().items())


def test_a_restored_optimiser_goes_on_with_the_same_bits() -> None:
    one, other = tiny_model(), tiny_model()
    first, second = (Optimizer(model.named_parameters(), RECIPE) for model in (one, other))
    give_gradients(one, 0)
    first.step(1.0)
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    second.step_count = first.step_count
    second.write_parameters()
    for seed in (1, 2):
        for model, optimizer in ((one, first), (other, second)):
            give_gradients(model, seed)
            optimizer.step(0.5)
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
