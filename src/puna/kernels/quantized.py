"""Products with weights in small numbers: the fastest way that there is for a format and a device, or the plain one.

In: activations, and weights as plain tensors or in a format of `formats`. Out: activations.
Not here: how the numbers were made small (`quant`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import experts as dense
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, expert_of

__all__ = ["Fp8", "Int4", "Int8", "Weight", "dequantize", "linear", "routed_experts"]

Weight = Tensor | Small


def linear(x: Tensor, weight: Weight) -> Tensor:
    """Returns x @ weight.T: x [.. in], weight [out in] in any format; [.. out] in the dtype of x."""
    return linear_plain(x, weight)


def routed_experts(x: Tensor, scores: Tensor, experts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Returns for each token the sum over its experts of Expert(score * x), as `experts.routed_experts` does.

    x [T D], scores [T k] in the dtype of x, experts int64 [T k], gate_up [E 2F D] (gate rows first) and down [E D F]
    in any format. Result [T D]. An expert that nobody chose is not read.
    """
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        return dense.routed_experts(x, scores, experts, gate_up, down)
    assert not isinstance(gate_up, Tensor) and not isinstance(down, Tensor), "both in small numbers, or neither"
    return routed_experts_plain(x, scores, experts, gate_up, down)


def linear_plain(x: Tensor, weight: Weight) -> Tensor:
    """The twin of `linear` for every format and device: the numbers are written out and multiplied."""
    return F.linear(x, dequantize(weight, x.dtype))


def routed_experts_plain(x: Tensor, scores: Tensor, experts: Tensor, gate_up: Small, down: Small) -> Tensor:
    """The twin of `routed_experts` for every format and device: one expert's numbers are written out at a time."""
    out = torch.zeros_like(x)  # T D
    for expert in torch.unique(experts).tolist():
        token, slot = (experts == expert).nonzero(as_tuple=True)  # r r
        rows = x[token] * scores[token, slot, None]  # r D
        gate, up = linear_plain(rows, expert_of(gate_up, expert)).chunk(2, dim=-1)  # r F
        out.index_add_(0, token, linear_plain(F.silu(gate) * up, expert_of(down, expert)))
    return out
