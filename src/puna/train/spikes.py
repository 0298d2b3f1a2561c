"""Steps that would do harm: their loss or gradient is not finite, or far above those of the steps before.

In: the [spikes] table of a recipe, and loss and gradient norm of each step that was made. Out: the limits of the next
one. Above them nothing is changed, and the run stops or goes on with the next batches, as the recipe says. A step that
was left out teaches nothing about what is usual. All that is remembered is in the checkpoint.
Source of the rule, its window and its deviations: OLMo-core, `SkipStepOptimizer` (128 steps, 6 standard deviations).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from puna.train.recipe import SpikesRecipe


class Limits(NamedTuple):
    """The most that loss, in nats a token, and gradient norm of a step may be."""

    loss: float = math.inf
    norm: float = math.inf

    def allow_loss(self, loss: float) -> bool:
        """Says whether it is a number and not above its limit."""
        return math.isfinite(loss) and loss <= self.loss

    def allow_norm(self, norm: float) -> bool:
        """Says whether it is a number and not above its limit."""
        return math.isfinite(norm) and norm <= self.norm

    def broken(self, loss: float, norm: float) -> str:
        """Returns what is wrong with a step, empty where nothing is."""
        for what, value, most, good in (
            ("loss", loss, self.loss, self.allow_loss(loss)),
            ("gradient", norm, self.norm, self.allow_norm(norm)),
        ):
            if not math.isfinite(value):
                return f"the {what} is not finite"
            if not good:
                return f"the {what} is {value:.3g}, where the steps before allow {most:.3g}"
        return ""


@dataclass(slots=True)
class Recent:
    """Losses and gradient norms of the last steps that were made, the oldest first, and how many were left out since
    the last one."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    left_out: int = 0

    def limits(self, wish: SpikesRecipe) -> Limits:
        """Returns the limits of the next step: none before half a window is known."""
        if not wish.sigma or len(self.losses) < max(2, wish.window // 2):
            return Limits()
        return Limits(_far(self.losses, wish.sigma), _far(self.norms, wish.sigma))

    def note(self, loss: float, norm: float, window: int) -> None:
        """Remembers a step that was made."""
        self.losses = [*self.losses, loss][-window:]
        self.norms = [*self.norms, norm][-window:]
        self.left_out = 0


def _far(values: list[float], sigma: float) -> float:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean + sigma * math.sqrt(variance)
