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
from puna.plan.activations import Shape
from puna.plan.cluster import Cluster
from puna.plan.serve import Asked, Served
from puna.plan.shares import Serving, Training, check_serving, check_training
from puna.plan.step import Assumed
from puna.plan.train import Length, Trained
from puna.plan.training import Job, Matrices

T = TypeVar("T")

MAX_STAGES = 16
"""Stages of an engine that serves: every one more makes answers come later."""


SIMULATED = 5
"""Layouts that are simulated, of all that fit."""

MIN_STRETCH = 2048
"""Tokens of a row that a rank has at least where ranks share rows: less, and it mostly waits for keys."""


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


def train(
    config: LlamaConfig,
    cluster: Cluster,
    shape: Shape,
    batch: int,
    assumed: Assumed,
    length: Length,
    matrices: Matrices,
) -> Found[Trained]:
    """Returns the best layout for training `batch` batches of `shape` a step. Raises ConfigError where there is none.

    All layouts are held against memory and estimated quickly; the `SIMULATED` fastest are then simulated.
    """
    fitting: list[Trained] = []
    lacking: list[Trained] = []
    refused: list[Refused] = []
    for layout in training_layouts(config, cluster, shape, batch):
        try:
            check_training(layout, config, shape.row_len)
            _check_batch(layout, batch)
        except ConfigError as error:
            refused.append(Refused(_short(layout), str(error)))
            continue
        job = Job(config=config, layout=layout, shape=shape, accumulate=batch, matrices=matrices)
        trained = Trained(job, cluster, assumed, length)
        (fitting if trained.fits else lacking).append(trained)
    lacking.sort(key=lambda each: each.needed)
    lacks = [Refused(_short(each.layout), _lacks(each.needed, each.memory_bytes)) for each in lacking]
    if fitting:
        fitting.sort(key=lambda each: each.step.quick_seconds())
        fastest = sorted(fitting[:SIMULATED], key=lambda each: each.simulated.seconds)
        slower = [Refused(_short(each.layout), _slower(each, fastest[0])) for each in fastest[1:]]
        return Found(best=fastest[0], fits=True, others=tuple(fastest[1:]), refused=(*slower, *lacks, *refused))
    if lacking:
        return Found(best=lacking[0], fits=False, others=(), refused=(*lacks, *refused))
    raise ConfigError(f"--hardware: {cluster.count} ranks cannot train this model: {refused[0].reason}")


def training_layouts(config: LlamaConfig, cluster: Cluster, shape: Shape, batch: int) -> Iterator[Training]:
    """Yields the ways to divide the ranks of a training that are worth a look: matrices within a node, rows shared only
    where there are fewer of them than ranks, experts as far as they go round, whole copies only of what is small."""
    text, count = config.text, cluster.count
    for pipeline in divisors(count):
        if pipeline > text.n_layers:
            break
        for tensor in divisors(min(cluster.hardware.node, count // pipeline)):
            if count % (pipeline * tensor):
                continue
            left = count // (pipeline * tensor)
            for context in divisors(left):
                if context > 1 and (left // context >= batch or shape.row_len // context < MIN_STRETCH):
                    continue
                for shard in divisors(left // context):
                    replicate = left // context // shard
                    if replicate > 1 and shard * context * tensor < cluster.hardware.node:
                        continue
                    for expert in _expert_choices(config, shard * context * tensor):
                        for recompute in (False, True):
                            yield Training(
                                pipeline=pipeline,
                                replicate=replicate,
                                shard=shard,
                                context=context,
                                tensor=tensor,
                                expert=expert,
                                recompute=recompute,
                            )


def _expert_choices(config: LlamaConfig, team: int) -> list[int]:
    """The two largest numbers of ranks over which experts go round, and none."""
    if not config.text.moe_layers:
        return [1]
    fitting = [n for n in divisors(config.text.n_experts) if team % n == 0]
    return sorted({1, *fitting[-2:]})


def _check_batch(layout: Training, batch: int) -> None:
    least = layout.readers * layout.pipeline
    if batch % layout.readers or batch < least:
        raise ConfigError(
            f"--batch: {batch} batches a step; {layout.readers} readers take equal numbers of them, and "
            f"{layout.pipeline} stages need one each at a time: a multiple of {layout.readers} from {least} on"
        )


def _slower(each: Trained, best: Trained) -> str:
    return f"a step takes {each.simulated.seconds:.2f} s instead of {best.simulated.seconds:.2f}"


def divisors(n: int) -> list[int]:
    """Returns the numbers that divide n, ascending."""
    return [k for k in range(1, n + 1) if n % k == 0]


def _short(layout: Any) -> dict[str, int]:
    return {name: n for name, n in asdict(layout).items() if n > 1 or n is True} or {"tensor": 1}


def _lacks(needed: int, memory_bytes: int) -> str:
    return f"its fullest rank needs {needed / 1e9:.1f} GB of {memory_bytes / 1e9:.1f}"
