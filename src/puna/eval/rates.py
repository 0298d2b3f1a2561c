"""Shares with their uncertainty: how many of how many, and between which values the true share lies.

In: counts. Out: `Rate`s with Wilson's interval, which is right for small counts and for none or all, where s / sqrt(n)
says 0. Not here: what is counted (`safety`, `detection`).

Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", with z for 95 %.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Z = 1.959963984540054
"""Of the normal distribution, 97.5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`hits` of `n`. With n 0 nothing is known."""

    hits: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool | None]) -> "Rate":
        """Returns the share of true outcomes; None counts as not measured."""
        known = [each for each in outcomes if each is not None]
        return cls(hits=sum(known), n=len(known))

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and the upper bound of the true share, 95 % sure."""
        if not self.n:
            return 0.0, 1.0
        p, n, z = self.hits / self.n, self.n, Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_dict(self) -> dict[str, Any]:
        """Returns counts, share and bounds, for JSON."""
        low, high = self.interval
        return {"hits": self.hits, "n": self.n, "rate": self.value, "low": round(low, 4), "high": round(high, 4)}

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.n}"
