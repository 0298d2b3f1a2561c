"""Which layout is best, and why the others were refused: every division of the ranks is tried, none is guessed.

In: a configuration, a cluster, and what is asked for. Out: a `Found`: the best one, those that also fit, and each other
one with its reason. What counts as best is the estimated speed; between equals, fewer ranks that share a layer.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.plan import serve as serving
from puna.plan.hardware import Cluster
from puna.plan.serve import Asked, Served
from puna.plan.shares import Serving, check_serving

T = TypeVar("T")

MAX_STAGES = 16
"""Stages of an engine that serves: every one more makes answers come later."""


class Refused(NamedTuple):
    """A layout, and what speaks against it."""

    layout: dict[str, int]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[T]):
    """What a search found. `best` is what fits and is fastest, or else what comes nearest to fitting."""

    best: T
    fits: bool
    others: tuple[T, ...]
    refused: tuple[Refused, ...]

    def refused_json(self, most: int = 12) -> list[dict[str, Any]]:
        """Returns JSON values of the first few reasons."""
        return [{"layout": each.layout, "reason": each.reason} for each in self.refused[:most]]


def serve(config: LlamaConfig, cluster: Cluster, asked: Asked) -> Found[Served]:
    """Returns the best layout for serving. Raises ConfigError where no layout divides the model at all."""
    tried: list[Served] = []
    refused: list[Refused] = []
    for layout in serving_layouts(cluster.count):
        try:
            check_serving(layout, config)
        except ConfigError as error:
            refused.append(Refused(_short(layout), str(error)))
            continue
        tried.append(serving.serve(config, cluster, layout, asked))
    if not tried:
        raise ConfigError(f"--hardware: {cluster.count} ranks cannot share this model: {refused[0].reason}")
    fitting = [each for each in tried if each.fits]
    lacking = [each for each in tried if not each.fits]
    lacking.sort(key=lambda each: each.fullest.total)
    refused += [Refused(_short(each.layout), _lacks(each.fullest.total, each.memory_bytes)) for each in lacking]
    if not fitting:
        return Found(best=lacking[0], fits=False, others=(), refused=tuple(refused))
    fitting.sort(key=lambda each: (-round(each.decode.tokens, 3), each.layout.team, each.layout.pipeline))
    return Found(best=fitting[0], fits=True, others=tuple(fitting[1:]), refused=tuple(refused))


def serving_layouts(count: int) -> Iterator[Serving]:
    """Yields every way to divide `count` ranks into engines, stages, experts and tensors."""
    for tensor in divisors(count):
        for expert in divisors(count // tensor):
            for pipeline in divisors(count // tensor // expert):
                if pipeline <= MAX_STAGES:
                    replicate = count // (tensor * expert * pipeline)
                    yield Serving(tensor=tensor, expert=expert, pipeline=pipeline, replicate=replicate)


def divisors(n: int) -> list[int]:
    """Returns the numbers that divide n, ascending."""
    return [k for k in range(1, n + 1) if n % k == 0]


def _short(layout: Any) -> dict[str, int]:
    return {name: n for name, n in asdict(layout).items() if n != 1} or {"tensor": 1}


def _lacks(needed: int, memory_bytes: int) -> str:
    return f"its fullest rank needs {needed / 1e9:.1f} GB of {memory_bytes / 1e9:.1f}"
