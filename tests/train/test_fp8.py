"""Training in eight bits: products of rows rounded to e4m3, the hardware's product as its twin, and what it costs."""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.errors import ConfigError
from puna.kernels.experts import grouped_linear_plain
from puna.model.transformer import Llama, initialise
from puna.train.fp8 import EightBitLinear, Rounded, grouped_product, linear, product, rounded, scaled_product, settle
from puna.train.loop import train
from puna.train.next_token import NextToken
from puna.train.optim import cast
from puna.train.recipe import ComputeRecipe, from_dict, override
from tests.reference.ranks import Ranks
from tests.reference.tiny import tiny_config
from tests.train.runs import divided, finished, logged, pause_at, silent
from tests.train.test_passes import some_batch

EIGHT_BITS = ComputeRecipe(dtype="bfloat16", compile=False, threads=1, matmul="fp8")
STEP = 2**-4
"""Largest relative error of a number that e4m3 rounds: half of the last of its four bits."""


def some(*shape: int, seed: int = 0) -> Tensor:
    """Numbers whose rows differ a thousand times in size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.empty(*shape[:-1], 1).uniform_(-2, 1, generator=generator)
    return torch.randn(*shape, generator=generator) * sizes


def reference(a: Tensor, b: Tensor) -> Tensor:
    """a times b transposed, in float64, of rows rounded by torch's own float8 as torchao's recipe says it."""

    def there_and_back(x: Tensor) -> Tensor:
        scale = torch.exp2(torch.floor(torch.log2(448 / x.abs().amax(-1, keepdim=True).double().clamp(min=1e-12))))
        return (x.double() * scale).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() / scale

    return there_and_back(a) @ there_and_back(b).T


def test_rows_are_rounded_to_e4m3_by_powers_of_two() -> None:
    x = some(6, 32)
    x[2] = 0
    codes, scales = rounded(x)
    assert codes.equal(codes.to(torch.float8_e4m3fn).float())
    assert torch.log2(scales).equal(torch.log2(scales).round())
    most = codes.abs().amax(-1)
    assert most[2] == 0 and all(224 <= float(value) <= 448 for i, value in enumerate(most) if i != 2)
    errors = (codes * scales - x).abs()
    assert (errors <= STEP * x.abs() + 2.0**-10 * scales).all()  # near zero steps are 2^-9 of the scale


def test_what_is_not_finite_stays_so() -> None:
    for wrong in (float("inf"), float("nan")):
        x = some(2, 16)
        x[1, 3] = wrong
        assert not product(x.bfloat16(), some(4, 16).bfloat16())[1].isfinite().any()


def test_a_product_is_that_of_rounded_rows() -> None:
    a, b = some(24, 48), some(40, 48, seed=1)
    expected = reference(a.bfloat16().float(), b.bfloat16().float())
    found = product(a.bfloat16(), b.bfloat16())
    assert found.dtype == torch.bfloat16
    bound = 2.0**-8 * expected.abs() + 1e-6 * (a.norm(dim=-1)[:, None] * b.norm(dim=-1))  # one rounding to bfloat16
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("summed", [48, 40])
def test_the_product_of_the_hardware_is_the_same_up_to_one_rounding(summed: int) -> None:
    """torch's `_scaled_mm`, which takes rows of any length on a processor too; on GPUs zeros fill them up."""
    a, b = some(24, summed).bfloat16(), some(32, summed, seed=1).bfloat16()
    codes = [Rounded(one.codes.to(torch.float8_e4m3fn), one.scales) for one in (rounded(a), rounded(b))]
    torch.testing.assert_close(scaled_product(*codes), product(a, b), rtol=2.0**-7, atol=1e-4)


def test_both_gradients_are_products_of_rounded_rows() -> None:
    x, weight, upstream = (some(*shape, seed=i).bfloat16() for i, shape in enumerate([(2, 12, 48), (32, 48), (24, 32)]))
    x.requires_grad_()
    weight.requires_grad_()
    linear(x, weight).backward(upstream.view(2, 12, 32))  # type: ignore[no-untyped-call]
    assert x.grad is not None and weight.grad is not None
    flat = x.detach().view(24, 48)
    for found, a, b in ((x.grad, upstream, weight.detach().T), (weight.grad, upstream.T, flat.T)):
        expected = reference(a.float(), b.float())
        scale = a.float().norm(dim=-1)[:, None] * b.float().norm(dim=-1)
        error = (found.flatten(0, -2).double() - expected).abs()
        assert (error <= 2.0**-8 * expected.abs() + 1e-6 * scale).all()


def test_experts_are_rounded_each_alone_and_one_without_rows_gets_no_gradient() -> None:
    x, weight = some(20, 16).bfloat16(), some(3, 32, 16, seed=1).bfloat16().requires_grad_()
    ends = torch.tensor([8, 8, 20], dtype=torch.int32)
    out = grouped_product(x, weight, ends)
    for g, (a, b) in enumerate(pairwise([0, *ends.tolist()])):
        assert out[a:b].equal(product(x[a:b], weight[g].detach()))
    out.sum().backward()
    assert weight.grad is not None and weight.grad[1].eq(0).all() and weight.grad[0].ne(0).any()
    nothing = grouped_product(x[:0], weight, ends * 0)
    assert nothing.shape == (0, 32)
    with torch.no_grad():
        torch.testing.assert_close(grouped_product(x, weight, ends), grouped_linear_plain(x, weight, ends))


def test_the_maps_of_layers_are_replaced_and_nothing_else() -> None:
    model, names = Llama(tiny_config()), [name for name, _ in Llama(tiny_config()).named_parameters()]
    parameters = [id(parameter) for parameter in model.parameters()]
    assert settle(model, replace(EIGHT_BITS, matmul="")) is model
    assert not any(isinstance(module, EightBitLinear) for module in model.modules())
    settle(model, EIGHT_BITS)
    assert [name for name, _ in model.named_parameters()] == names
    assert [id(parameter) for parameter in model.parameters()] == parameters
    replaced = {name for name, module in model.named_modules() if isinstance(module, EightBitLinear)}
    linear_maps = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = {name for name in linear_maps - replaced if not name.startswith("vision.")}
    assert left == {"head", "projector", "layers.1.moe.router", "layers.3.moe.router"}


def test_gradients_are_near_those_of_bfloat16() -> None:
    """Each product's factors are off by up to 1/16 of a number, 1/40 in the mean, in all directions: a gradient by a
    few hundredths for each product on the way to it. Seen: 0.05 to 0.2, the embedding's least."""
    exact, eight = (gradients(settle(model(), replace(EIGHT_BITS, matmul=matmul))) for matmul in ("", "fp8"))
    for name, gradient in exact.items():
        error = float((eight[name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
        assert error < 0.3, (name, error)
        assert error > 0 or gradient.norm() == 0 or name.startswith("head"), name


def model() -> Llama:
    made = Llama(tiny_config())
    initialise(made, torch.Generator().manual_seed(0))
    return made


def gradients(model: Llama) -> dict[str, Tensor]:
    cast(model, torch.bfloat16)
    loss = NextToken(model, balance=0.01, z=0.0, chunk=32)
    batch = some_batch(model.config, 0)
    loss(batch, loss.total(batch)).total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compute.matmul=fp4", "compute.matmul: 'fp4' .*fp8"),
        ("compute.dtype=float32", "compute.dtype: 'float32' .*bfloat16"),
        ("compute.compile=true", "compute.compile: True .*no graph"),
        ("parallel.tensor=2", "parallel.tensor: 2 .*rows are rounded whole"),
    ],
)
def test_what_cannot_be_with_eight_bits_is_refused(tables: dict[str, Any], change: str, message: str) -> None:
    tables["compute"]["matmul"] = "fp8"
    from_dict(copy.deepcopy(tables))
    override(tables, change)
    with pytest.raises(ConfigError, match=message):
        from_dict(tables)


def test_a_recipe_without_eight_bits_has_the_digest_that_it_had(tables: dict[str, Any]) -> None:
    plain = from_dict(copy.deepcopy(tables)).digest
    tables["compute"]["matmul"] = ""
    assert from_dict(copy.deepcopy(tables)).digest == plain
    tables["compute"]["matmul"] = "fp8"
    assert from_dict(tables).digest != plain


@pytest.mark.slow
def test_a_hundred_steps_in_eight_bits_lose_little_against_bfloat16(tables: dict[str, Any], tmp_path: Path) -> None:
    """The mean loss of the last twenty steps, in nats: 0.03 more at most, of 5.5 at the beginning."""
    tables["schedule"] |= {"steps": 100, "warmup_steps": 5, "decay_steps": 20}
    tables["checkpoint"]["every_steps"], tables["data"]["held_out"] = 0, ""
    last = {}
    for matmul in ("", "fp8"):
        tables["compute"]["matmul"] = matmul
        assert train(from_dict(copy.deepcopy(tables)), tmp_path / f"run{matmul}", silent).finished
        losses = logged(tmp_path / f"run{matmul}", "loss")
        assert losses[0] > 4
        last[matmul] = sum(losses[-20:]) / 20
    assert last["fp8"] < last[""] + 0.03, last


@pytest.mark.slow
def test_a_run_in_eight_bits_goes_on_with_the_same_bits(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["compute"]["matmul"], tables["data"]["held_out"] = "fp8", ""
    tables["schedule"] |= {"steps": 3, "warmup_steps": 1, "decay_steps": 1}

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(from_dict(tables), whole, silent).finished
    assert not train(from_dict(tables), resumed, pause_at(2)).finished
    assert train(from_dict(tables), resumed, silent).finished
    assert logged(whole, "loss") == logged(resumed, "loss")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_ranks_train_in_eight_bits_as_one_process_does(
    two_ranks: Ranks, tables: dict[str, Any], tmp_path: Path
) -> None:
    """Not to the bit: a weight's gradient is rounded by each rank's own rows. Eight steps at a rate that does not make
    much of that; seen were 0.016 nats, in a step of a steep loss, and 0.4 % of a norm."""
    tables["compute"]["matmul"], tables["data"]["held_out"] = "fp8", ""
    tables["batch"] |= {"rows": 1, "accumulate": 2}
    tables["optimizer"]["lr"] = 1e-3
    one, ranks = tmp_path / "one", tmp_path / "ranks"
    assert finished(tables, str(one))
    assert all(two_ranks.run(finished, divided(tables, shard=2, expert=2), str(ranks)))
    assert logged(ranks, "loss")[0] == pytest.approx(logged(one, "loss")[0], rel=1e-6)
    assert logged(ranks, "loss") == pytest.approx(logged(one, "loss"), abs=0.025)
    assert logged(ranks, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=0.01)
