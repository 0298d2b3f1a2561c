"""Training in eight bits: the linear maps of the decoder's layers multiply numbers of e4m3, forward and backward.

In: a model. Out: the same model, whose maps round both factors of each product, row by row along what is summed over,
to e4m3 times a power of two. So each product rounds anew: what is a row of a weight forward is a column backward.
Weights, their gradients and the optimiser's masters stay what they are. Head, router, embeddings, norms, attention
itself and the vision tower are not touched: routing and the loss are decided there, for few of the operations.
Gradients are e4m3 too, not e5m2: a scale of its own for every row leaves less to reach over than a scale for a tensor,
for which e5m2's exponents are made, so that a bit more of precision is worth more.

On CUDA the products are torch's `_scaled_mm` (an H100, or an Ada of compute capability 8.9), which no GPU has run for
puna yet. Elsewhere the rounded numbers are written out in bfloat16, which holds them exactly, and multiplied: the same
numbers, for tests and no faster.
Where nothing is differentiated maps are as exact as in an exported model, so that what is measured is what is written.
Source: recipe "rowwise" of torchao's float8 training (e4m3 for input, weight and gradient; scales rounded down to
powers of two; sums in the fast accumulator); OCP "8-bit floating point specification" (e4m3: largest 448).
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.config import LlamaConfig
from puna.errors import ConfigError, DeviceError
from puna.kernels.experts import grouped_linear
from puna.model.transformer import Block, Llama
from puna.quant.fp8 import LIMIT, nearest
from puna.shapes import sizes
from puna.train.recipe import ComputeRecipe

CAPABILITY = (8, 9)
"""The least CUDA compute capability whose tensor cores multiply e4m3."""

MULTIPLE = 16
"""Of what `_scaled_mm` wants lengths to be multiples, but for the number of rows of its first factor."""

_LEAST = 1e-12  # of a row's maximum, so that a row of zeros has a scale
_POWER = 0x7F800000  # the bits of a float32 that are its power of two


def settle(model: Llama, compute: ComputeRecipe) -> Llama:
    """Returns `model` with the products that a recipe's [compute] wants: as it is, or with its layers' maps replaced in
    place by such as multiply in eight bits. Parameters keep their names and values.

    Raises ConfigError for sizes that a GPU cannot multiply so, DeviceError for a GPU that cannot at all.
    """
    if compute.matmul != "fp8":
        return model
    if compute.device == "cuda":
        _check_gpu(model.config)
    for layer in model.layers:
        assert isinstance(layer, Block), "a decoder is a list of blocks"
        for path, module in list(layer.named_modules()):
            outer, _, name = path.rpartition(".")
            if isinstance(module, nn.Linear) and name != "router":
                setattr(layer.get_submodule(outer), name, EightBitLinear(module))
        if layer.moe is not None:
            layer.moe.experts.product = grouped_product
    return model


class EightBitLinear(nn.Linear):
    """A linear map without bias that trains in eight bits. Takes the place of a `nn.Linear`, whose weight it has."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight = plain.weight

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight) if torch.is_grad_enabled() else F.linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x [.. in] times weight [out in], bfloat16 [.. out], in eight bits here and on the way back."""
    out: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Returns what `kernels.experts.grouped_linear` does, in eight bits wherever something is differentiated."""
    if not torch.is_grad_enabled():
        return grouped_linear(x, weight, ends)
    borders = [0, *ends.tolist()]
    parts = [linear(x[a:b], weight[g]) for g, (a, b) in enumerate(pairwise(borders)) if b > a]
    return torch.cat(parts) if parts else x @ weight.sum(0).T  # nothing, through which gradients are zeros


class Rounded(NamedTuple):
    """A matrix in e4m3, codes [rows n], and the scale of each row, a power of two, float32 [rows 1]: code * scale.

    Codes are numbers of e4m3 in float32, or in float8_e4m3fn itself where a GPU multiplies them.
    """

    codes: Tensor
    scales: Tensor


def rounded(x: Tensor) -> Rounded:
    """Returns a matrix [rows n] in e4m3, each row by its largest number, which comes to lie within 224..448. A row with
    a number that is not finite gets a scale that is not."""
    wide = x.float()
    most = wide.abs().amax(-1, keepdim=True).clamp(min=_LEAST)  # rows 1
    per_scale = ((LIMIT / most).view(torch.int32) & _POWER).view(torch.float32)  # rounded down to a power of two
    numbers = (wide * per_scale).clamp(-LIMIT, LIMIT)
    scales = torch.where(most.isfinite(), 1 / per_scale, torch.nan)
    return Rounded(numbers.to(torch.float8_e4m3fn) if x.is_cuda else nearest(numbers), scales)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a [M K] times b [N K], bfloat16 [M N], of the rows of both in eight bits."""
    _, K = sizes(a, "M K")
    sizes(b, f"N {K}")
    one, other = rounded(a), rounded(b)
    if a.is_cuda:
        return scaled_product(one, other)
    return written_out(one) @ written_out(other).T


def scaled_product(a: Rounded, b: Rounded) -> Tensor:
    """The product as hardware has it. Codes are float8_e4m3fn; zeros fill up what is summed over."""
    missing = -a.codes.shape[1] % MULTIPLE
    one, other = (
        F.pad(codes.view(torch.uint8), (0, missing)).view(torch.float8_e4m3fn).contiguous()
        for codes in (a.codes, b.codes)
    )
    out: Tensor = torch._scaled_mm(
        one, other.T, a.scales, b.scales.T.contiguous(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out


def written_out(x: Rounded) -> Tensor:
    """Returns the numbers that are meant, bfloat16, which holds four bits times a power of two exactly."""
    return (x.codes.float() * x.scales).bfloat16()


class _Linear(torch.autograd.Function):
    """x @ weight.T, and both gradients as products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = upstream[0].flatten(0, -2)  # T out
        by_x = product(gradient, weight.T).view(x.shape) if ctx.needs_input_grad[0] else None
        by_weight = product(gradient.T, x.flatten(0, -2).T) if ctx.needs_input_grad[1] else None
        return by_x, by_weight


def _check_gpu(config: LlamaConfig) -> None:
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY or not hasattr(torch, "_scaled_mm"):
        raise DeviceError(
            f"compute.matmul: this GPU has compute capability {found[0]}.{found[1]} and e4m3 needs 8.9; leave it out"
        )
    text = config.text
    lengths = {
        "width": text.width,
        "n_heads * head_dim": text.n_heads * text.head_dim,
        "n_kv_heads * head_dim": text.n_kv_heads * text.head_dim,
        "expert_width": text.expert_width if text.moe_layers else MULTIPLE,
        "dense_width": text.dense_width if len(text.moe_layers) < text.n_layers else MULTIPLE,
    }
    for name, length in lengths.items():
        if length % MULTIPLE:
            raise ConfigError(f"compute.matmul: {name} is {length}; GPUs multiply e4m3 of multiples of {MULTIPLE}")
