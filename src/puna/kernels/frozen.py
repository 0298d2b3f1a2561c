"""Products with weights that do not train, in any format: gradients pass through them and small numbers stay small.

In: activations, and weights as plain tensors, in a format of `formats`, or packed by `native`. Out: activations. What
is kept for the way back are codes and scales; numbers are written out again there, of one expert at a time, and only of
experts that rows went to. Packed weights are in an order that nothing but their own kernels reads: they pass nothing
back, so whoever trains keeps weights unpacked (`adapters.attach` refuses others).
Source of writing numbers out twice: QLoRA, arXiv 2305.14314 section 3.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import experts as dense
from puna.kernels import native
from puna.kernels.formats import Small, dequantize, expert_of, shape
from puna.kernels.native import Packed
from puna.kernels.quantized import Weight
from puna.kernels.quantized import linear as product


def linear(x: Tensor, weight: Small) -> Tensor:
    """Returns x @ weight.T, [.. in] -> [.. out], for a matrix [out in] in small numbers. Differentiable in x."""
    out: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def grouped_linear(x: Tensor, weight: Weight | Packed, ends: Tensor) -> Tensor:
    """Returns what `experts.grouped_linear` does, for stacks [E out in] in any format. Differentiable in x, and in
    weights that are plain; nothing comes back from packed ones."""
    if isinstance(weight, Tensor):
        return dense.grouped_linear(x, weight, ends)
    if isinstance(weight, Packed):
        return native.grouped_linear(x, weight, ends)
    out: Tensor = _GroupedProduct.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return out


def n_experts(weight: Weight | Packed) -> int:
    """Returns how many matrices a stack of any format has."""
    n = weight.n_experts if isinstance(weight, Packed) else shape(weight)[0]
    assert n is not None, "a stack of experts"
    return n


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Small) -> Tensor:
        ctx.weight = weight
        return product(x, weight)  # the fastest there is: within this function nothing is differentiated

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] @ dequantize(ctx.weight, upstream[0].dtype), None


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Small, ends: Tensor) -> Tensor:
        ctx.weight, ctx.borders = weight, [0, *ends.tolist()]
        return _each_group(x, weight, ctx.borders, shape(weight)[1], F.linear)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return _each_group(upstream[0], ctx.weight, ctx.borders, shape(ctx.weight)[2], torch.matmul), None, None


def _each_group(x: Tensor, weight: Small, borders: list[int], width: int, product: Any) -> Tensor:
    """Returns the product of each group's rows with its matrix, written out for this moment, [R width]."""
    out = x.new_empty(len(x), width)
    for group, (first, last) in enumerate(pairwise(borders)):
        if last > first:
            out[first:last] = product(x[first:last], dequantize(expert_of(weight, group), x.dtype))
    return out
