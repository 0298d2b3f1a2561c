"""Low-rank corrections of linear maps, many at a time: rows that share a correction lie together and go through it.

In: what maps read and gave, factors, and which row has which (`Groups`). Out: what the maps give with the corrections.
y = W x + scale * b (a x), for dense maps and, expert by expert, for routed ones. Differentiable in activations and
factors. Corrections are computed in the dtype of the factors and added in that of what they correct.
Not here: whose factors these are and where they come from (`adapters`), files (`weights.peft`).
Source: LoRA, arXiv 2106.09685 section 4.1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels import frozen
from puna.kernels.experts import Slots, group_by_expert, grouped_linear, row_block
from puna.kernels.native import Packed
from puna.kernels.quantized import Weight
from puna.shapes import sizes


class Factors(NamedTuple):
    """The correction scale * b a of a matrix [out in]: a [r in], b [out r]; of a stack [E out in]: a [n r in],
    b [n out r], for the n `experts` named, in ascending order, or for all E where that is None."""

    a: Tensor
    b: Tensor
    scale: float
    experts: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


class Groups(NamedTuple):
    """Which rows go through which factors: `rows` int64 [S], those of one group together, in the order of the groups
    (None: all, as they lie); `ends` int32 [M], where each group's rows end among these."""

    rows: Tensor | None
    ends: Tensor


Correct = Callable[[Tensor, Tensor, Slots], Tensor]
"""Takes what a stack of experts read [S in] and gave [S out], and where rows lie; returns what it gives corrected."""


def grouped(keys: Tensor, n_groups: int) -> Groups:
    """Returns the groups of rows whose numbers are `keys` int64 [R]; rows of a negative number are in none."""
    counts = torch.bincount(keys[keys >= 0], minlength=n_groups)  # M
    ends = counts.cumsum(0).to(torch.int32)
    n_none = len(keys) - int(ends[-1])
    if n_none == 0 and (keys[1:] >= keys[:-1]).all():
        return Groups(None, ends)
    return Groups(keys.argsort(stable=True)[n_none:], ends)


def correct(x: Tensor, y: Tensor, a: Tensor, b: Tensor, groups: Groups, scale: float = 1.0) -> Tensor:
    """Returns y [R out] with scale * b[g] a[g] x added in each row of group g. x [R in], a [M r in], b [M out r]."""
    rows = (x if groups.rows is None else x[groups.rows]).to(a.dtype)
    if not len(rows):
        return y
    inner = _product(rows, a, groups.ends) * scale  # S r
    added = _product(inner, b, groups.ends).to(y.dtype)  # S out
    return y + added if groups.rows is None else y.index_add(0, groups.rows, added)


def linear(x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Returns y [.. out] with scale * b a x added in every row. x [.. in], a [r in], b [out r]."""
    return y + F.linear(F.linear(x.to(a.dtype), a) * scale, b).to(y.dtype)


def routed_experts(
    x: Tensor,
    scores: Tensor,
    experts: Tensor,
    gate_up: Weight | Packed,
    down: Weight | Packed,
    correct_gate_up: Correct,
    correct_down: Correct,
) -> Tensor:
    """Returns what `quantized.routed_experts` does, with what each stack gives corrected on the way."""
    T, D = sizes(x, "T D")
    k, E = experts.shape[1], frozen.n_experts(gate_up)
    block = row_block(T * k, E, x.device) if isinstance(gate_up, Tensor) else 1
    slots = group_by_expert(experts.flatten(), E, block)
    rows = (x[:, None] * scores[:, :, None]).flatten(0, 1)  # R D
    read = rows.new_zeros(slots.n_slots, D).index_copy(0, slots.slot, rows)  # S D, zeros where no row lies
    gate, up = correct_gate_up(read, frozen.grouped_linear(read, gate_up, slots.ends), slots).chunk(2, dim=-1)
    mixed = F.silu(gate) * up  # S F
    out = correct_down(mixed, frozen.grouped_linear(mixed, down, slots.ends), slots)  # S D
    return out[slots.slot].view(T, k, D).sum(1)  # T D


def as_it_is(x: Tensor, y: Tensor, slots: Slots) -> Tensor:
    """Returns what a stack without corrections gives."""
    return y


def expert_of_slots(slots: Slots) -> Tensor:
    """Returns the expert that each slot belongs to, int64 [S], free ones included."""
    places = torch.arange(slots.n_slots, device=slots.ends.device, dtype=slots.ends.dtype)
    return torch.bucketize(places, slots.ends, right=True)


def _product(x: Tensor, factors: Tensor, ends: Tensor) -> Tensor:
    return F.linear(x, factors[0]) if len(factors) == 1 else grouped_linear(x, factors, ends)
