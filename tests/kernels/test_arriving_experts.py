"""Experts that come one at a time, in any order, give the numbers of experts that are all there, bit for bit."""

import pytest
import torch
from torch import Tensor

from puna.kernels.arriving_experts import Arrival, arriving_experts, arriving_small_experts
from puna.kernels.experts import routed_experts
from puna.kernels.formats import Fp8, Int4, Int8, Small, pack
from puna.kernels.quantized import routed_experts as routed_small_experts


def inputs(T: int, k: int, E: int, dtype: torch.dtype, D: int = 32, F: int = 64) -> list[Tensor]:
    torch.manual_seed(T * 100 + k)
    x, gate_up, down = torch.randn(T, D), torch.randn(E, 2 * F, D) / 6, torch.randn(E, D, F) / 8
    best, experts = torch.randn(T, E).topk(k, dim=-1)
    return [x.to(dtype), best.sigmoid().to(dtype), experts, gate_up.to(dtype), down.to(dtype)]


def small(weight: Tensor, form: str) -> Small:
    *leading, width = weight.shape
    if form == "int4":
        scales = torch.rand(*leading, width // 32).bfloat16() / 16
        return Int4(pack(torch.randint(-8, 8, weight.shape)), scales)
    scales = torch.rand(*leading, 1) / 64
    if form == "int8":
        return Int8(torch.randint(-127, 128, weight.shape, dtype=torch.int8), scales)
    return Fp8(torch.randn(weight.shape).to(torch.float8_e4m3fn), scales)


def one(weight: Tensor | Small, expert: int) -> Tensor | Small:
    part = slice(expert, expert + 1)
    return weight[part] if isinstance(weight, Tensor) else type(weight)(weight.codes[part], weight.scales[part])


def arrivals(experts: Tensor, gate_up: Tensor | Small, down: Tensor | Small) -> list[Arrival]:
    """The chosen ones, in an order that is neither theirs nor its reverse."""
    used = torch.unique(experts).tolist()
    return [Arrival(e, one(gate_up, e), one(down, e)) for e in sorted(used, key=lambda e: e * 5 % 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "k", "E"), [(1, 1, 8), (9, 1, 8), (9, 2, 8), (40, 1, 8), (600, 1, 8), (300, 3, 8)])
def test_plain_experts_in_any_order_give_the_same_bits(T: int, k: int, E: int, dtype: torch.dtype) -> None:
    x, scores, experts, gate_up, down = inputs(T, k, E, dtype)
    resident = routed_experts(x, scores, experts, gate_up, down)
    assert torch.equal(arriving_experts(x, scores, experts, E, arrivals(experts, gate_up, down)), resident)


def test_slots_filled_up_behind_the_last_expert_change_nothing() -> None:
    x, scores, _, gate_up, down = inputs(600, 1, 8, torch.bfloat16)
    for last in (6, 7):  # the last expert takes what is left of the slots, whether somebody chose it or not
        experts = torch.arange(600)[:, None] % last
        resident = routed_experts(x, scores, experts, gate_up, down)
        assert torch.equal(arriving_experts(x, scores, experts, 8, arrivals(experts, gate_up, down)), resident)


@pytest.mark.parametrize("form", ["int4", "int8", "fp8"])
@pytest.mark.parametrize(("T", "k"), [(1, 1), (9, 1), (40, 3)])
def test_experts_in_small_numbers_in_any_order_give_the_same_bits(T: int, k: int, form: str) -> None:
    x, scores, experts, gate_up, down = inputs(T, k, 8, torch.bfloat16)
    small_gate_up, small_down = small(gate_up, form), small(down, form)
    resident = routed_small_experts(x, scores, experts, small_gate_up, small_down)
    come = arrivals(experts, small_gate_up, small_down)
    assert torch.equal(arriving_small_experts(x, scores, experts, come), resident)


def test_no_tokens_need_no_experts() -> None:
    x, scores, experts, *_ = inputs(0, 1, 8, torch.float32)
    assert arriving_experts(x, scores, experts, 8, []).shape == (0, 32)
    assert arriving_small_experts(x, scores, experts, []).shape == (0, 32)
