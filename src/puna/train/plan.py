"""What a recipe would take, before anything starts: parameters, and what each rank would hold, in bytes.

In: a recipe. Out: a `Plan`, by arithmetic over shapes: no process, no weights, no GPU. Raises ConfigError for what
cannot be trained so.
Not here: the arithmetic (`plan.training`), the division itself (`mesh`, `spread`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from puna.config import LlamaConfig
from puna.kernels import training as kernels
from puna.model.count import count_parameters, shapes
from puna.plan import training
from puna.plan.activations import Kept, Shape, has_kernels
from puna.plan.shares import Training
from puna.plan.training import MASTER, Held, Job
from puna.train import mesh
from puna.train.recipe import ParallelRecipe, Recipe

GPU_BYTES = 80_000_000_000
"""Memory of the GPU that the card's models were trained on, H100-80GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run in numbers. Replicas hold the same, so `ranks` are those of the first one of each stage.

    start   bytes of the largest float32 parameter, which each rank has whole in the host's memory when a run begins
    batch   tokens of a step; tokens: of the whole run, padding included
    """

    layout: ParallelRecipe
    device: str
    total: int
    active: int
    start: int
    batch: int
    tokens: int
    ranks: tuple[Held, ...]

    @property
    def fullest(self) -> Held:
        return max(self.ranks, key=lambda held: held.peak)

    @property
    def evenness(self) -> float:
        """Least over most bytes that stay, within the stage where they differ most; 1: even."""
        each = self.layout.shard * self.layout.context * self.layout.tensor
        stages = [self.ranks[i : i + each] for i in range(0, len(self.ranks), each)]
        return min(min(h.stays for h in stage) / max(h.stays for h in stage) for stage in stages)

    def missing(self, memory: int) -> int:
        """Returns how many bytes the fullest rank lacks while it trains, 0 where it fits."""
        return max(0, self.fullest.peak - memory)

    def to_json(self, memory: int) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "parameters": {"total": self.total, "active": self.active},
            "parallel": asdict(self.layout) | {"world": self.layout.world},
            "tokens_per_step": self.batch,
            "tokens": self.tokens,
            "start_bytes": self.start,
            "evenness": self.evenness,
            "memory": memory,
            "missing_bytes": self.missing(memory),
            "ranks": [asdict(held) | {"stays": held.stays, "peak": held.peak} for held in self.ranks],
        }


def plan(recipe: Recipe, config: LlamaConfig) -> Plan:
    """Returns what a recipe would take. Raises ConfigError, with field, value and remedy, for an impossible layout."""
    mesh.check(recipe.parallel, config, recipe.batch)
    job = job_of(recipe, config)
    count = count_parameters(config)
    batch = recipe.batch.rows * recipe.batch.row_len * recipe.batch.accumulate
    return Plan(
        layout=recipe.parallel,
        device=recipe.compute.device,
        total=count.total,
        active=count.activated,
        start=max(math.prod(shape) for shape in shapes(config).values()) * MASTER,
        batch=batch,
        tokens=batch * recipe.schedule.steps,
        ranks=tuple(training.ranks(job, Kept(config, job.layout, job.shape))),
    )


def job_of(recipe: Recipe, config: LlamaConfig) -> Job:
    """Returns a recipe's run as `plan.training` sees it."""
    return Job(
        config=config,
        layout=Training(**asdict(recipe.parallel)),
        shape=Shape(
            rows=recipe.batch.rows,
            row_len=recipe.batch.row_len,
            tiles=recipe.batch.tiles,
            itemsize=getattr(torch, recipe.compute.dtype).itemsize,
            chunk=recipe.loss.chunk,
            kernels=_has_kernels(recipe, config),
        ),
        accumulate=recipe.batch.accumulate,
        matrices="muon" if recipe.optimizer.matrices == "muon" else "adamw",
    )


def _has_kernels(recipe: Recipe, config: LlamaConfig) -> bool:
    """Returns whether the C++ kernels of a step will run: on a processor, in bfloat16, where they are built."""
    compute = recipe.compute
    wanted = compute.device == "cpu" and compute.dtype == "bfloat16" and not compute.matmul
    return wanted and has_kernels(config.text) and kernels.available()


def table(plan: Plan, memory: int) -> str:
    """Returns a plan for people, against `memory` bytes of a device."""
    layout, fullest = plan.layout, plan.fullest
    rows = [
        f"parameters     {plan.total / 1e9:,.3f} B, {plan.active / 1e9:,.3f} B active",
        f"ranks          {layout.world} = {layout.product}, experts over {layout.expert}",
        f"tokens         {plan.batch:,} a step, {plan.tokens / 1e9:,.3f} B in all",
        f"evenness       {plan.evenness:.3f} (least over most that ranks of a stage keep; 1 is even)",
        "",
        f"{'GB':15}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'saving':>9}{'gathered':>10}{'activations':>13}"
        f"  {'(kept / recomputed)':>21}{'update':>9}{'peak':>9}",
    ]
    rows += [_row(held) for held in _examples(plan)]
    if plan.device == "cuda":
        missing = plan.missing(memory)
        rows += ["", f"Rank {fullest.rank} is the fullest: {fullest.peak / 1e9:.1f} GB of {memory / 1e9:.0f} GB."]
        rows += [f"It does not fit: {missing / 1e9:.1f} GB are missing." if missing else "It fits."]
        rows += [f"When it begins, each rank has one parameter whole in the host's memory, {plan.start / 1e9:.1f} GB."]
    return "\n".join(rows)


def _row(held: Held) -> str:
    sizes = (held.weights, held.gradients, held.optimizer, held.saving, held.gathered, held.activations)
    numbers = "".join(f"{n / 1e9:{width}.3f}" for n, width in zip(sizes, (9, 11, 11, 9, 10, 13), strict=True))
    kinds = f"({held.activations_kept / 1e9:.3f} / {held.activations_recomputed / 1e9:.3f})"
    return f"rank {held.rank:<10}{numbers}  {kinds:>21}{held.update / 1e9:9.3f}{held.peak / 1e9:9.3f}"


def _examples(plan: Plan) -> list[Held]:
    """Returns of each stage the rank with the least and the one with the most."""
    each = plan.layout.shard * plan.layout.context * plan.layout.tensor
    found = []
    for i in range(0, len(plan.ranks), each):
        stage = plan.ranks[i : i + each]
        ends = {held.rank: held for held in (min(stage, key=lambda h: h.peak), max(stage, key=lambda h: h.peak))}
        found += [ends[rank] for rank in sorted(ends)]
    return found
