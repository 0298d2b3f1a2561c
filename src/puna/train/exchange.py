"""What ranks exchange within a forward and a backward pass: slices of tokens, keys and values, rows for experts.

Every function is differentiable, and called by all ranks of its group alike. Gradients come out as in one process: of a
tensor that several ranks hold alike, each of them gets the whole gradient.
Not here: gradients of weights, which are summed behind the backward pass (`spread`).
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives

from puna.kernels.experts import Product, routed_experts
from puna.shapes import sizes


def split(x: Tensor, group: ProcessGroup) -> Tensor:
    """Returns this rank's part of x [T ...], which all ranks of the group hold alike: the T/ranks rows at its place."""
    if group.size() == 1:
        return x
    part: Tensor = _Split.apply(x, group)  # type: ignore[no-untyped-call]
    return part


def join(x: Tensor, group: ProcessGroup) -> Tensor:
    """Returns the parts of all ranks, below one another, on every rank: `split` undone."""
    if group.size() == 1:
        return x
    rows: Tensor = _Join.apply(x, group)  # type: ignore[no-untyped-call]
    return rows


def gather(x: Tensor, axis: int, group: ProcessGroup) -> Tensor:
    """Returns the tensors of all ranks side by side along `axis`. Unlike `join`'s, ranks use the result differently, so
    that gradients of a part are summed over them.
    """
    if group.size() == 1:
        return x
    gathered = collectives.all_gather_tensor_autograd(x.movedim(axis, 0).contiguous(), 0, group)
    return _arrived(gathered).movedim(0, axis)


def sum_over(x: Tensor, group: ProcessGroup) -> Tensor:
    """Returns the sum of a detached tensor over the ranks, in memory of its own."""
    total = x.detach().clone()
    if group.size() > 1:
        distributed.all_reduce(total, group=group)
    return total


def experts_across(
    x: Tensor,
    scores: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    group: ProcessGroup,
    product: Product | None = None,
) -> Tensor:
    """Returns what `kernels.experts.routed_experts` does, for experts that the ranks of a group have dealt out.

    x [T D], scores [T k] and experts int64 [T k] are this rank's own tokens; gate_up [E/ranks 2F D] and down
    [E/ranks D F] its own experts, those at its place. Rows travel to their experts and back. Result [T D].
    """
    T, D = sizes(x, "T D")
    k, n_own, ranks = experts.shape[1], gate_up.shape[0], group.size()
    if ranks == 1:
        return routed_experts(x, scores, experts, gate_up, down, product)
    order = experts.flatten().argsort(stable=True)  # R, R = T k
    counts = torch.bincount(experts.flatten(), minlength=n_own * ranks).view(ranks, n_own)  # rows for each expert
    coming = torch.empty_like(counts)  # [r e]: rows that rank r has for own expert e
    distributed.all_to_all_single(coming, counts, group=group)
    there, here = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = (x[:, None] * scores[:, :, None]).flatten(0, 1)[order]  # R D
    arrived = _travel(rows, here, there, group)  # r D, rank after rank, within a rank expert after expert
    whose = torch.arange(n_own, device=x.device).repeat(ranks).repeat_interleave(coming.flatten())  # r
    ones = arrived.new_ones(len(arrived), 1)
    if len(arrived):
        made = routed_experts(arrived, ones, whose[:, None], gate_up, down, product)
    else:  # a rank without work takes part all the same: its weights have gradients, zeros
        made = arrived + 0 * (gate_up.sum() + down.sum())
    back = _travel(made, there, here, group)  # R D
    return torch.empty_like(back).index_copy(0, order, back).view(T, k, D).sum(1)  # T D


def _travel(rows: Tensor, here: list[int], there: list[int], group: ProcessGroup) -> Tensor:
    moved = collectives.all_to_all_single_autograd(rows.contiguous(), here, there, group)
    return _arrived(moved)


def _own_rows(x: Tensor, group: ProcessGroup) -> Tensor:
    return x.chunk(group.size())[distributed.get_group_rank(group, distributed.get_rank())].contiguous()


def _all_rows(x: Tensor, group: ProcessGroup) -> Tensor:
    return _arrived(collectives.all_gather_tensor(x.contiguous(), 0, group))


def _arrived(x: Tensor) -> Tensor:
    """Waits for what a collective has begun."""
    there: Tensor = collectives.wait_tensor(x)  # type: ignore[no-untyped-call]
    return there


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _own_rows(x, group)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return _all_rows(upstream[0], ctx.group), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_rows(x, group)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return _own_rows(upstream[0], ctx.group), None
