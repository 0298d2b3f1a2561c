"""The small parts that text and experts share: RMS norm and the SwiGLU feed-forward.

Source: llama-models `models/llama4/model.py` and `ffn.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.deltas import Deltas, through


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Returns x divided by the root mean square of its last axis, computed in float32, in the dtype of x."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm with a learnt gain. The cast to the model's dtype comes before the gain: bit parity depends on it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases: the dense layers and the shared expert."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor, deltas: Deltas | None = None) -> Tensor:
        mixed = F.silu(through(self.gate, x, deltas)) * through(self.up, x, deltas)
        return through(self.down, mixed, deltas)
