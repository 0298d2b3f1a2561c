"""SwiGLU experts that run only for the tokens routed to them.

In: tokens, the experts chosen for each and their scores. Out: the sum of the chosen experts' outputs per token.
Not here: the choice itself (`model/moe`). Why weights are stored [experts, out, in]: docs/decisions/001.
Source: score on the expert's input, no renormalisation (llama-models `models/llama4/moe.py`).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import training
from puna.shapes import sizes

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of rows, weights and ends as `grouped_linear` is."""

ALIGNMENT_BYTES = 16  # torch's grouped product wants rows that start on 16-byte borders
ROW_BLOCKS = (16, 64)
"""Rows of an expert are filled up to a multiple of a power of two in this range, about a quarter of what it gets. The
CPU library compiles a kernel for each number of rows that it meets: with numbers as they come, 48 products of a
training step took 0.90 s, in blocks 0.11; but blocks of 64 where an expert gets 64 rows double its work."""


def routed_experts(
    x: Tensor, scores: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, product: Product | None = None
) -> Tensor:
    """Returns for each token the sum over its experts of Expert(score * x). Differentiable, also in the scores.

    x [T D], scores [T k] in the dtype of x, experts int64 [T k], gate_up [E 2F D] (gate rows first), down [E D F].
    Result [T D]. An expert that nobody chose is not read. `product` multiplies instead of `grouped_linear`.
    """
    multiply = grouped_linear if product is None else product
    T, D = sizes(x, "T D")
    E, _, _ = sizes(gate_up, f"E 2F {D}")
    k = experts.shape[1]
    in_one = product is None and _trains_in_one(x, gate_up, down)
    slots = group_by_expert(experts.flatten(), E, 1 if in_one else row_block(T * k, E, x.device))
    rows = (x[:, None] * scores[:, :, None]).flatten(0, 1)  # R D
    grouped = rows.new_zeros(slots.n_slots, D).index_copy(0, slots.slot, rows)
    if in_one:
        grouped = training.swiglu(grouped, gate_up, down, slots.ends)[0]
        rows = rows.new_zeros(rows.shape).index_copy(0, slots.order, grouped)  # as below, without a sum on the way back
    else:
        gate, up = multiply(grouped, gate_up, slots.ends).chunk(2, dim=-1)
        rows = multiply(F.silu(gate) * up, down, slots.ends)[slots.slot]
    return rows.view(T, k, D).sum(1)  # T D


def row_block(n_rows: int, n_experts: int, device: torch.device) -> int:
    """Returns of what the number of an expert's rows is made a multiple: 1 leaves it as it comes."""
    least, most = ROW_BLOCKS
    each = n_rows // n_experts
    if device.type != "cpu" or each < most:
        return 1
    return max(least, min(most, 1 << (each // 4).bit_length() - 1))


class Slots(NamedTuple):
    """Where routed rows lie when each expert's are together: slot int64 [R], ends int32 [E] of each expert's slots. And
    order int64 [R]: which row is the first in the slots, the second and so on."""

    slot: Tensor
    ends: Tensor
    n_slots: int
    order: Tensor


def group_by_expert(experts: Tensor, n_experts: int, block: int) -> Slots:
    """Returns a place for each routed row: an expert's rows are neighbours, in order, from a multiple of `block`.

    experts int64 [R]. Free slots fill the blocks; their number, and so `n_slots`, does not depend on the routing.
    """
    R = experts.numel()
    n_slots = R if block == 1 else R + n_experts * block
    counts = torch.bincount(experts, minlength=n_experts)  # E
    room = (counts + block - 1) // block * block  # E
    ends = room.cumsum(0)  # E
    order = experts.argsort(stable=True)  # R
    shift = (ends - room) - (counts.cumsum(0) - counts)  # E: by how much an expert's rows move up
    places = torch.arange(R, device=experts.device) + shift[experts[order]]  # R, of the sorted rows
    slot = torch.empty_like(order).scatter_(0, order, places)  # R
    ends = torch.cat([ends[:-1], ends.new_full((1,), n_slots)])  # the last expert takes what is left
    return Slots(slot, ends.to(torch.int32), n_slots, order)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Returns x[i] @ weight[g].T for each row i of group g, where group g is the rows ends[g-1] to ends[g].

    x [R in], weight [E out in], ends int32 [E] ascending, last one R. Result [R out].
    """
    if x.dtype == torch.bfloat16 and _is_aligned(weight):
        return torch._grouped_mm(x, weight.mT, offs=ends)  # R out
    return grouped_linear_plain(x, weight, ends)


def grouped_linear_plain(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The twin of `grouped_linear` for every dtype, size and device: one product per group that has rows."""
    groups = torch.split(x, [b - a for a, b in pairwise([0, *ends.tolist()])])  # indexing is slow on the way back
    parts = [F.linear(rows, own) for rows, own in zip(groups, weight.unbind(0), strict=True) if len(rows)]
    return torch.cat(parts) if parts else x.new_empty(0, weight.shape[1])  # R out


def _trains_in_one(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Says whether `training.swiglu` does all of it. Without gradients there are the same bits as of experts that come
    one at a time (`arriving_experts`)."""
    fits = all(width % training.UNIT == 0 for width in down.shape[1:])
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate_up, down))
    return wanted and fits and training.can_train(x, gate_up, down)


def _is_aligned(weight: Tensor) -> bool:
    return all(size * weight.element_size() % ALIGNMENT_BYTES == 0 for size in weight.shape[1:])
