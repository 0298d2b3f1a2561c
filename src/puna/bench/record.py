"""What a sitting of measurements found, as a value, as a JSON document and as a table.

The document's names are those that the scripts for other systems print too, so that figures can be laid side by side.
Not here: how figures come about (`measure`).
"""

import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from puna.bench.machine import Disturbance, Machine
from puna.bench.work import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Samples of one quantity, and its floor: the best that this machine allows, None where there is no such bound."""

    samples: tuple[float, ...]
    floor: float | None = None
    more_is_better: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def share(self) -> float | None:
        """How much of the floor is reached: 1 is as good as it gets."""
        if self.floor is None:
            return None
        return self.median / self.floor if self.more_is_better else self.floor / self.median


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sitting: figures by name, and what they belong to."""

    model: str
    quantize: str | None
    dtype: str
    runs: int
    temperature: float
    machine: Machine
    disturbance: Disturbance
    limits: Limits
    figures: dict[str, Figure] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the document that `puna bench --json` prints: every figure's median under its own name."""
        figures = self.figures.items()
        return {
            "peer": "puna",
            "model": self.model,
            "quantize": self.quantize,
            "dtype": self.dtype,
            **{name: _rounded(figure.median) for name, figure in figures},
            "floors": {name: _rounded(figure.floor) for name, figure in figures if figure.floor is not None},
            "shares": {name: _rounded(figure.share) for name, figure in figures if figure.share is not None},
            "samples": {name: [_rounded(sample) for sample in figure.samples] for name, figure in figures},
            "runs": self.runs,
            "temperature": self.temperature,
            "machine": self.machine._asdict(),
            "disturbance": self.disturbance._asdict(),
            "limits": {"read_gbs": self.limits.read_bytes / 1e9, "gemm_gflops": self.limits.flops / 1e9},
            "versions": {name: version(name) for name in ("puna", "torch")},
        }

    def table(self) -> str:
        """Returns the record as lines for a reader."""
        where, others = self.machine, self.disturbance
        numbers = self.dtype if self.quantize is None else f"{self.quantize} beside {self.dtype}"
        rows = [
            f"{self.model}, {numbers}, on {where.accelerator or where.processor}, {where.n_threads} threads",
            f"memory read {self.limits.read_bytes / 1e9:.1f} GB/s, matrix product {self.limits.flops / 1e9:.0f} GFLOP/s"
            f"; steal {_percent(others.steal_share)}, other programs {_percent(others.others_share)} of the time",
            "",
            f"{'':26} {'median':>10} {'lowest':>10} {'highest':>10} {'floor':>10} {'of floor':>8}",
        ]
        for name, figure in self.figures.items():
            floor = "" if figure.floor is None else f"{figure.floor:.2f}"
            low, high = min(figure.samples), max(figure.samples)
            share = "" if figure.share is None else _percent(figure.share)
            rows.append(f"{name:26} {figure.median:10.2f} {low:10.2f} {high:10.2f} {floor:>10} {share:>8}")
        return "\n".join(rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
