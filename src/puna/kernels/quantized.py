"""Products with weights in small numbers: the fastest way that there is for a format and a device, or the plain one.

In: activations, and weights as plain tensors, in a format of `formats`, or packed by `native`. Out: activations.
On a processor the C++ kernels take what was packed for them; on a GPU Triton's take the formats as they are, in
bfloat16 and float32; everything else goes the plain way, which every test holds the others against.
Not here: how the numbers were made small (`quant`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import experts as dense
from puna.kernels import native
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, expert_of
from puna.kernels.native import Packed

__all__ = ["Fp8", "Int4", "Int8", "Packed", "Weight", "dequantize", "linear", "routed_experts"]

Weight = Tensor | Small


def linear(x: Tensor, weight: Weight | Packed) -> Tensor:
    """Returns x @ weight.T: x [.. in], weight [out in] in any format; [.. out] in the dtype of x."""
    if isinstance(weight, Packed):
        return native.linear(x, weight)
    if not isinstance(weight, Tensor) and torch.is_grad_enabled() and x.requires_grad:
        from puna.kernels import frozen  # which has the plain twins of this file

        return frozen.linear(x, weight)
    if isinstance(weight, Tensor) or not _is_for_triton(x):
        return linear_plain(x, weight)
    from puna.kernels import triton_int4

    return triton_int4.linear(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


def routed_experts(
    x: Tensor, scores: Tensor, experts: Tensor, gate_up: Weight | Packed, down: Weight | Packed
) -> Tensor:
    """Returns for each token the sum over its experts of Expert(score * x), as `experts.routed_experts` does.

    x [T D], scores [T k] in the dtype of x, experts int64 [T k], gate_up [E 2F D] (gate rows first) and down [E D F]
    in any format, both or neither packed. Result [T D]. An expert that nobody chose is not read.
    """
    if isinstance(gate_up, Packed) or isinstance(down, Packed):
        assert isinstance(gate_up, Packed) and isinstance(down, Packed), "both packed, or neither"
        return native.routed_experts(x, scores, experts, gate_up, down)
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        return dense.routed_experts(x, scores, experts, gate_up, down)
    if torch.is_grad_enabled() and x.requires_grad:
        from puna.kernels import low_rank

        return low_rank.routed_experts(x, scores, experts, gate_up, down, low_rank.as_it_is, low_rank.as_it_is)
    if not _is_for_triton(x):
        return routed_experts_plain(x, scores, experts, gate_up, down)
    from puna.kernels import triton_experts

    return triton_experts.routed_experts(x, scores, experts, gate_up, down)


def linear_plain(x: Tensor, weight: Weight) -> Tensor:
    """The twin of `linear` for every format and device: the numbers are written out and multiplied."""
    return F.linear(x, dequantize(weight, x.dtype))


def routed_experts_plain(x: Tensor, scores: Tensor, experts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """The twin of `routed_experts` for every format and device: one expert's numbers are written out at a time."""
    out = torch.zeros_like(x)  # T D
    for expert in torch.unique(experts).tolist():
        token, slot = (experts == expert).nonzero(as_tuple=True)  # r r
        rows = x[token] * scores[token, slot, None]  # r D
        gate, up = linear_plain(rows, expert_of(gate_up, expert)).chunk(2, dim=-1)  # r F
        out.index_add_(0, token, linear_plain(F.silu(gate) * up, expert_of(down, expert)))
    return out


def _is_for_triton(x: Tensor) -> bool:
    """Whether Triton's kernels take x. Triton comes with torch for GPUs, and is imported only where there is one."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float32)
