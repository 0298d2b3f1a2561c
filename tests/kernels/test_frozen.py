from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import frozen, quantized
from puna.kernels.experts import grouped_linear, routed_experts
from puna.kernels.formats import Small, dequantize
from puna.quant import fp8, int4, int8

QUANTISERS = [int4.quantize, int8.quantize, fp8.quantize]
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)  # of three experts, one without rows


def small_stack(quantise: Callable[[Tensor], Small], n_out: int, n_in: int) -> Small:
    return quantise(torch.randn(3, n_out, n_in, generator=torch.Generator().manual_seed(n_out)))


def without_numbers(small: Small, expert: int) -> Small:
    """The stack with one expert that nobody can read: all its numbers are NaN."""
    scales = small.scales.clone()
    scales[expert] = torch.nan
    return type(small)(small.codes, scales)


@pytest.mark.parametrize("quantise", QUANTISERS)
def test_gradients_pass_small_numbers_as_if_they_were_written_out(quantise: Callable[[Tensor], Small]) -> None:
    small = quantise(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(3, 32, requires_grad=True)
    ours, plain = (
        torch.autograd.grad(run.square().sum(), x)[0]
        for run in (quantized.linear(x, small), F.linear(x, dequantize(small, x.dtype)))
    )
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("quantise", QUANTISERS)
def test_only_experts_with_rows_are_written_out_on_both_ways(quantise: Callable[[Tensor], Small]) -> None:
    small = without_numbers(small_stack(quantise, 4, 32), expert=1)
    x = torch.randn(5, 32, requires_grad=True)
    out = frozen.grouped_linear(x, small, ENDS)
    plain = grouped_linear(x, dequantize(small, x.dtype).nan_to_num(), ENDS)
    torch.testing.assert_close(out, plain)
    ours, theirs = (torch.autograd.grad(each.square().sum(), x)[0] for each in (out, plain))
    torch.testing.assert_close(ours, theirs)


def test_nothing_as_large_as_the_weights_is_kept_for_the_way_back() -> None:
    gate_up, down = small_stack(int4.quantize, 128, 64), small_stack(int4.quantize, 64, 64)
    x = torch.randn(4, 64, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantized.routed_experts(x, torch.ones(4, 1), torch.tensor([[0], [2], [0], [2]]), gate_up, down)
    assert max(kept) <= 4 * 128  # activations


def test_gradients_of_small_experts_are_those_of_their_numbers() -> None:
    gate_up, down = small_stack(int4.quantize, 64, 32), small_stack(int4.quantize, 32, 32)
    numbers = [dequantize(each, torch.float32) for each in (gate_up, down)]
    x, scores = torch.randn(4, 32, requires_grad=True), torch.rand(4, 1, requires_grad=True)
    experts = torch.tensor([[0], [2], [0], [2]])
    ours = quantized.routed_experts(x, scores, experts, gate_up, down)
    plain = routed_experts(x, scores, experts, *numbers)
    torch.testing.assert_close(ours, plain)
    for got, wanted in zip(*(torch.autograd.grad(out.sum(), (x, scores)) for out in (ours, plain)), strict=True):
        torch.testing.assert_close(got, wanted)
