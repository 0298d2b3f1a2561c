"""Several adapters over one model, of which each row of a batch takes its own, or none.

In: a model, and adapters by name. Out: for the rows of a batch what their adapters add (`model.deltas`). The factors of
all adapters lie in one stack for each map, ranks filled up with zeros; rows of one adapter go through it together, and
of routed experts those of one adapter and one expert. A row gets what it gets alone, and the base's weights are read
once for all.
Not here: files (`weights.peft`), which request wants which (`engine`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.adapters.spec import Adapter
from puna.errors import ConfigError
from puna.kernels import frozen, low_rank, native
from puna.kernels.experts import Slots
from puna.kernels.low_rank import Correct, Factors, Groups
from puna.kernels.quantized import Weight
from puna.model.deltas import Adapted
from puna.model.transformer import Llama

_RANK_STEP = 8  # ranks are filled up to a multiple: torch's grouped product wants rows of whole 16 bytes
_EYES = ("vision.", "projector.")


class Stack(NamedTuple):
    """Factors of all adapters for one map: a [M r in], b [M out r], scales multiplied in. `table` says which of the M
    belong to an adapter, int64 [n+1], or to one of its experts, [n+1 E]; -1: none, as in its last row, for no adapter.
    `owners` are the adapters that have any."""

    a: Tensor
    b: Tensor
    table: Tensor
    owners: frozenset[int]


class Shelf:
    """Adapters over one model, by name, in this order. Raises ConfigError for those that cannot be served."""

    def __init__(self, model: Llama, adapters: Mapping[str, Adapter]) -> None:
        """Factors must fit the modules of `model`; of a rank's share of a model, they are this rank's part."""
        self.names: Sequence[str] = tuple(adapters)
        self.linears: dict[nn.Module, Stack] = {}
        self.experts: dict[nn.Module, tuple[Stack | None, Stack | None]] = {}
        for name, adapter in adapters.items():
            for parameter in adapter:
                _check(model, name, parameter)
        self._packed: dict[tuple[nn.Module, str], native.PackedFactors] = {}
        self._tables: dict[tuple[int | None, ...], Tensor] = {}  # one for all maps that the same adapters correct alike
        like, sets = _numbers(model.norm.weight), list(adapters.values())
        for path in dict.fromkeys(parameter.rpartition(".")[0] for each in sets for parameter in each):
            part = model.get_submodule(path)
            of = {leaf: [each.get(f"{path}.{leaf}") for each in sets] for leaf in ("weight", "gate_up", "down")}
            if any(of["weight"]):
                self.linears[part] = self._stack(of["weight"], None, like)
            else:
                n_experts = frozen.n_experts(part.gate_up)  # type: ignore[arg-type]
                gate_up, down = (
                    self._stack(of[leaf], n_experts, like) if any(of[leaf]) else None for leaf in ("gate_up", "down")
                )
                self.experts[part] = gate_up, down

    def deltas(self, rows: Tensor) -> "OfRows":
        """Returns what the adapters with the numbers `rows` int64 [T] add, each in its row; -1 adds nothing."""
        return OfRows(self, rows)

    def packed(self, part: nn.Module, leaf: str = "weight") -> native.PackedFactors | None:
        """Returns what all adapters add to a module's parameter of this name, for the C++ kernels; None: nothing.

        They are packed when they are first asked for.
        """
        gate_up, down = self.experts.get(part, (None, None))
        stack = {"weight": self.linears.get(part), "gate_up": gate_up, "down": down}[leaf]
        if stack is None:
            return None
        key = (part, leaf)
        if key not in self._packed:
            numbers = _numbers_packed(getattr(part, leaf))
            a, b = (native.pack(factors.to(numbers)) for factors in (stack.a, stack.b))
            self._packed[key] = native.PackedFactors(a, b, stack.table[:-1].to(torch.int32).contiguous())
        return self._packed[key]

    def _stack(self, factors: Sequence[Factors | None], n_experts: int | None, like: Tensor) -> Stack:
        own = {i: each for i, each in enumerate(factors) if each is not None}
        rank = -(-max(each.rank for each in own.values()) // _RANK_STEP) * _RANK_STEP
        widened = [_widened(each, rank) for each in own.values()]
        n_columns = 1 if n_experts is None else n_experts
        rows, end = [[-1] * n_columns for _ in range(len(factors) + 1)], 0
        for i, (each, wide) in enumerate(zip(own.values(), widened, strict=True)):
            adapter = list(own)[i]
            for expert in range(len(wide.a)) if each.experts is None else each.experts:
                rows[adapter][expert] = end
                end += 1
        flat = (n_experts, *(number for row in rows for number in row))
        fresh = torch.tensor(rows, device=like.device)
        table = self._tables.setdefault(flat, fresh[:, 0] if n_experts is None else fresh)
        a, b = (torch.cat(parts).to(like) for parts in zip(*((wide.a, wide.b) for wide in widened), strict=True))
        return Stack(a, b, table, frozenset(own))


class OfRows:
    """What the adapters of a shelf add in the rows of one batch: a `model.deltas.Deltas`."""

    def __init__(self, shelf: Shelf, rows: Tensor) -> None:
        self._shelf, self._rows = shelf, rows
        self._present = frozenset(rows.tolist())
        self._groups: dict[int, Groups] = {}  # of maps that the same adapters correct

    def linear(self, part: nn.Module, x: Tensor) -> Tensor:
        """Returns what a linear map gives for x [T in], corrected: [T out]."""
        y: Tensor = part(x)
        stack = self._shelf.linears.get(part)
        if stack is None or not self._present & stack.owners:
            return y
        key = id(stack.table)
        if key not in self._groups:
            self._groups[key] = low_rank.grouped(stack.table[self._rows], len(stack.a))
        return low_rank.correct(x, y, stack.a, stack.b, self._groups[key])

    def experts(self, part: nn.Module, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        """Returns what the routed experts of a layer give, corrected; all as in `model.moe.Experts`."""
        stacks = self._shelf.experts.get(part, (None, None))
        if not any(stack is not None and self._present & stack.owners for stack in stacks):
            out: Tensor = part(x, scores, experts)
            return out
        rows = self._rows.repeat_interleave(experts.shape[1])  # R
        corrects = (_correct(stack, rows, experts.flatten()) for stack in stacks)
        return low_rank.routed_experts(x, scores, experts, part.gate_up, part.down, *corrects)  # type: ignore[arg-type]

    def of_rows(self, rows: Tensor) -> "OfRows":
        """Returns those of some rows of the batch, int64 [R], in this order."""
        return OfRows(self._shelf, self._rows[rows])


def _correct(stack: Stack | None, rows: Tensor, experts: Tensor) -> Correct:
    """Corrects what one stack of experts gives to routed rows, whose adapters and experts are int64 [R]."""
    if stack is None:
        return low_rank.as_it_is

    def correct(x: Tensor, y: Tensor, slots: Slots) -> Tensor:
        groups = stack.table[rows, experts]  # R
        of_slots = groups.new_full((slots.n_slots,), -1).index_copy(0, slots.slot, groups)
        return low_rank.correct(x, y, stack.a, stack.b, low_rank.grouped(of_slots, len(stack.a)))

    return correct


def _numbers(gain: Tensor) -> Tensor:
    """Returns an example of the numbers that factors are kept in: on a processor float32, whose small products cost a
    tenth of those in bfloat16; else the model's own."""
    return gain.detach().float() if gain.device.type == "cpu" else gain.detach()


def _numbers_packed(weight: Weight | native.Packed) -> torch.dtype:
    """Returns what factors are packed in: the weight's own numbers, for small ones bfloat16, which is finer than what
    these make of activations, and half as much to read."""
    is_wide = (
        weight.kind == "fp32" if isinstance(weight, native.Packed) else getattr(weight, "dtype", None) == torch.float32
    )
    return torch.float32 if is_wide else torch.bfloat16


def _widened(factors: Factors, rank: int) -> Factors:
    """Returns the same correction with more ranks, of zeros, as of a stack, its scale multiplied in."""
    n_missing = rank - factors.rank
    a = F.pad(factors.a.detach(), (0, 0, 0, n_missing))
    b = F.pad(factors.b.detach() * factors.scale, (0, n_missing))
    return Factors(a, b, 1.0) if a.dim() == 3 else Factors(a[None], b[None], 1.0)


def _check(model: Llama, adapter: str, parameter: str) -> None:
    if parameter.startswith(_EYES):
        raise ConfigError(
            f"adapter {adapter!r} corrects {parameter}: features of pictures are shared by all requests; merge it with "
            "puna convert --adapter, and serve the result"
        )
    path, _, leaf = parameter.rpartition(".")
    part = model.get_submodule(path)
    if isinstance(part, Adapted):
        raise ConfigError(f"adapter {adapter!r}: the model has one attached for training; detach it first")
    if getattr(part, leaf, None) is None:
        raise ConfigError(
            f"adapter {adapter!r} corrects {parameter}, which is offloaded; load the model without offload, or merge it"
        )
