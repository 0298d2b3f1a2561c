"""Where tokens went: which experts the layers with experts chose, for each token of those who ask, and counted for all.

In: the routes of one step, as a runner wrote them into its batch. Out: `Routes` of a new token, and totals.
Not here: the choice itself (`model/moe`), who asks.
"""

import threading
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS_AT_ONCE = 64  # that are kept before they are counted, which takes longer than keeping them


class Routes(NamedTuple):
    """The experts behind one new token, by layer with experts.

    `made` are those of the position that the token was chosen at, best first. `read` counts what the prompt's tokens
    took as they were read, for each expert: with the first token only, and without what was remembered.
    """

    made: list[list[int]]  # M k
    read: list[list[int]] | None  # M E


class RouteCounts:
    """How many tokens each expert of each layer took since the engine was made. May be read from any thread."""

    def __init__(self, n_layers: int, n_experts: int) -> None:
        self._counts = torch.zeros(n_layers, n_experts, dtype=torch.int64)
        self._waiting: list[Tensor] = []
        self._lock = threading.Lock()

    def add(self, routes: Tensor) -> None:
        """Counts the tokens of a step; routes int32 [M T k] on the processor."""
        with self._lock:
            self._waiting.append(routes)
            if len(self._waiting) >= _STEPS_AT_ONCE:
                self._count()

    def totals(self) -> list[list[int]]:
        """Returns the counts by layer and expert."""
        with self._lock:
            self._count()
            counts: list[list[int]] = self._counts.tolist()
            return counts

    def _count(self) -> None:
        if self._waiting:
            self._counts += counted(torch.cat(self._waiting, dim=1), self._counts.shape[1])
            self._waiting.clear()


def counted(routes: Tensor, n_experts: int) -> Tensor:
    """Returns how many tokens each expert took: routes int32 [M T k] -> int64 [M E]."""
    n_layers = routes.shape[0]
    layers = torch.arange(n_layers)[:, None, None] * n_experts
    return torch.bincount((routes + layers).flatten(), minlength=n_layers * n_experts).view(n_layers, n_experts)
