"""Mixture of experts: each token runs the shared expert and the few routed experts that its router picks.

Source: llama-models `models/llama4/moe.py`; score on the expert's input, shared expert on the unscaled input.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from puna.config import TextConfig
from puna.kernels.experts import Product, routed_experts
from puna.model.deltas import Deltas, through
from puna.model.layers import SwiGLU


class Route(NamedTuple):
    """Where the tokens of one layer went: raw router logits [T E] and the chosen experts, best first, int64 [T k]."""

    logits: Tensor
    experts: Tensor


class Experts(nn.Module):
    """The routed experts of one layer as two tensors: gate_up [E 2F D] with the gate's rows first, down [E D F].

    `product`, which only training has (`train.fp8`), multiplies rows with them instead of `kernels.experts`'s.
    """

    product: Product | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, 2 * config.expert_width, config.width))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.width, config.expert_width))

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        return routed_experts(x, scores, experts, self.gate_up, self.down, self.product)


class MoE(nn.Module):
    """Router, routed experts and shared expert of one layer.

    `bias` float32 [E], which only training has (`train.balance`), counts when experts are chosen, not in their scores.
    `forced` int64 [T k], which only reinforcement has (`train.reinforce`), chooses instead of the router; -1 does not.
    """

    bias: Tensor | None = None
    forced: Tensor | None = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.n_active = config.n_active_experts
        self.router = nn.Linear(config.width, config.n_experts, bias=False)
        self.experts = Experts(config)
        self.shared = SwiGLU(config.width, config.expert_width)

    def forward(self, x: Tensor, deltas: Deltas | None = None) -> tuple[Tensor, Route]:
        """x [T D]. Returns the layer's output [T D] and its route."""
        logits = through(self.router, x, deltas)  # T E
        best, experts = logits.topk(self.n_active, dim=-1)  # T k
        if self.bias is not None:
            experts = (logits.detach() + self.bias).topk(self.n_active, dim=-1).indices  # T k
            best = logits.gather(1, experts)
        if self.forced is not None:
            experts = torch.where(self.forced < 0, experts, self.forced)
            best = logits.gather(1, experts)
        scores = best.float().sigmoid().to(x.dtype)  # T k
        return self.shared(x, deltas) + self.routed(x, scores, experts, deltas), Route(logits, experts)

    def routed(self, x: Tensor, scores: Tensor, experts: Tensor, deltas: Deltas | None) -> Tensor:
        """Returns what the chosen experts add, [T D]; all as in `Experts`."""
        if deltas is not None:
            return deltas.experts(self.experts, x, scores, experts)
        out: Tensor = self.experts(x, scores, experts)
        return out
