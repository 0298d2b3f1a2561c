"""Corrections of linear maps that come in with a batch: each row may have its own, or none.

A model holds one set of weights; what several fine-tunings of it add is the business of the `Deltas` that come in with
the batch, as keys and values are the `KVStore`'s (docs/decisions/019). Without any, the forward is as it was.
Not here: what is added, and for whom (`adapters.shelf`).
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from puna.kernels.native import PackedFactors


class Deltas(Protocol):
    """What is added to the maps of one model, for the rows of one flat batch."""

    def linear(self, part: nn.Module, x: Tensor) -> Tensor:
        """Returns what a linear map of the model gives for x [T in], corrected: [T out]."""
        ...

    def experts(self, part: nn.Module, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        """Returns what the routed experts of a layer give, corrected; all as in `moe.Experts`."""
        ...

    def of_rows(self, rows: Tensor) -> "Deltas":
        """Returns those of some rows of the batch, int64 [R], in this order."""
        ...


class Shelf(Protocol):
    """Several sets of corrections for one model, by name."""

    @property
    def names(self) -> Sequence[str]:
        """What they are called; their numbers are their places here."""
        ...

    def deltas(self, rows: Tensor) -> Deltas:
        """Returns the corrections of a batch whose rows have these numbers, int64 [T]; -1 for a row without any."""
        ...

    def packed(self, part: nn.Module, leaf: str = "weight") -> PackedFactors | None:
        """Returns what all sets add to a module's parameter of this name, for the C++ kernels; None: nothing."""
        ...


class Adapted(nn.Module):
    """A module that stands where another one was and gives more than that: whoever reads weights past the modules must
    not take it for the other."""


def through(part: nn.Module, x: Tensor, deltas: Deltas | None) -> Tensor:
    """Returns what a linear map gives, with the corrections if there are any."""
    out: Tensor = part(x) if deltas is None else deltas.linear(part, x)
    return out
