"""Routed experts whose weights come one expert at a time, in whatever order, and may be gone when the next one comes.

In: tokens, routes and scores as `experts` and `quantized` take them, and arrivals. Out: the same numbers as these give
for experts that all lie in memory, bit for bit: rows meet the same products in the same company, and sums are taken
in the same order, whatever the order of arrival.
Not here: where the weights come from (`offload`).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels.experts import group_by_expert, grouped_linear, row_block
from puna.kernels.quantized import Packed, Weight, routed_experts
from puna.shapes import sizes


class Arrival(NamedTuple):
    """The weights of one expert, as stacks of one: gate_up [1 2F D], gate rows first, and down [1 D F]."""

    expert: int
    gate_up: Weight | Packed
    down: Weight | Packed


def arriving_experts(x: Tensor, scores: Tensor, experts: Tensor, n_experts: int, arrivals: Iterable[Arrival]) -> Tensor:
    """Returns what `experts.routed_experts` returns, for plain weights. Each chosen expert must arrive once.

    x [T D], scores [T k] in the dtype of x, experts int64 [T k]. Result [T D].
    """
    T, D = sizes(x, "T D")
    _, k = sizes(scores, f"{T} k")
    slots = group_by_expert(experts.flatten(), n_experts, row_block(T * k, n_experts, x.device))
    rows = (x[:, None] * scores[:, :, None]).flatten(0, 1)  # R D
    grouped = rows.new_zeros(slots.n_slots, D).index_copy(0, slots.slot, rows)
    borders = list(pairwise([0, *slots.ends.tolist()]))
    out = torch.empty_like(grouped)  # slots of experts that nobody chose stay undefined, and are not looked at
    for expert, gate_up, down in arrivals:
        assert isinstance(gate_up, Tensor) and isinstance(down, Tensor), "small numbers: `arriving_small_experts`"
        first, last = borders[expert]
        end = slots.ends.new_full((1,), last - first)
        gate, up = grouped_linear(grouped[first:last], gate_up, end).chunk(2, dim=-1)
        out[first:last] = grouped_linear(F.silu(gate) * up, down, end)
    return out[slots.slot].view(T, k, D).sum(1)  # T D


def arriving_small_experts(x: Tensor, scores: Tensor, experts: Tensor, arrivals: Iterable[Arrival]) -> Tensor:
    """Returns what `quantized.routed_experts` returns, for weights small or packed; as `arriving_experts`."""
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    for expert, gate_up, down in arrivals:
        token, slot = (experts == expert).nonzero(as_tuple=True)  # r r
        score = scores[token, slot, None]  # r 1
        only = torch.zeros_like(score, dtype=torch.int64)
        parts[expert] = token, routed_experts(x[token], score, only, gate_up, down)  # r D
    out = torch.zeros_like(x)  # T D
    for _, (token, part) in sorted(parts.items()):
        out.index_add_(0, token, part)
    return out
