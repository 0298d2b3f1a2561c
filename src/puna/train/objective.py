"""What a run trains towards and what it reads, as the loop sees them: two protocols, and what joins them.

In and out: nothing of its own. The loop draws batches from a `Feed` and differentiates an `Objective`, in pre-training
`PackedFeed` and `NextToken`. Both must be functions of the run's state alone, so that a run that was killed ends with
the same bits: a feed that makes its batches with the model's weights makes them from those, its seed and `DataState`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

from puna.train.next_token import Loss
from puna.train.pack import Batch, DataState


class Objective(Protocol):
    """The loss of one model."""

    def total(self, batch: Batch) -> Tensor:
        """Returns what a batch counts in its step, float32 scalar: weights of tokens, pairs, samples."""
        ...

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        """Returns the loss of a batch; that of a step is the sum of its batches'.

        total_weight: float32 scalar, what all batches of this step count; share: this batch's part of the step, for
        losses that are means over tokens, as the router's.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Returns what it remembers from step to step, the live tensors, by names of their own."""
        ...


class Reader(Protocol):
    """Batches in order."""

    def next(self) -> tuple[Batch, DataState]:
        """Returns the next batch, and the state behind it."""
        ...


class Feed(Protocol):
    """Where batches come from. `digest` is that of the data: a run cannot go on with other data."""

    @property
    def digest(self) -> str: ...

    def opened(self, state: DataState, reader: int, readers: int) -> AbstractContextManager[Reader]:
        """Returns the batches behind `state`; of every `readers` in order, number `reader`."""
        ...

    def names(self, batch: Batch) -> list[str]:
        """Returns what the documents of a batch are called, for messages."""
        ...


def nothing() -> None:
    """What most exercises do at the end."""


class Exercise(NamedTuple):
    """What a model is trained towards, and on what. `at_end` is called once behind the last step."""

    objective: Objective
    feed: Feed
    at_end: Callable[[], None] = nothing
