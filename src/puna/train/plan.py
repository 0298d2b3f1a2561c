"""What a recipe would take, before anything starts: parameters, and what each rank would hold, in bytes.

In: a recipe. Out: a `Plan`, by arithmetic over shapes: no process, no weights, no GPU. Weights, gradients and the
optimiser's state are exact (tests compare them with what ranks really hold); what comes and goes in a step is an
estimate, without what an allocator cannot use. Raises ConfigError for what cannot be trained so.
Not here: the division itself (`mesh`, `spread`), of which this is the arithmetic.

Source: FSDP2 divides the first axis as torch.chunk does, the last ranks may get less or nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from puna.config import LlamaConfig
from puna.model.count import count_parameters
from puna.model.transformer import Llama
from puna.parallel import cuts_of
from puna.train import mesh
from puna.train.activations import Kept
from puna.train.optim import is_matrix
from puna.train.recipe import ParallelRecipe, Recipe

GPU_BYTES = 80_000_000_000
"""Memory of the GPU that the card's models were trained on, H100-80GB."""

MASTER = 4
"""Bytes of a float32 number: of master weights, moments and, on ranks, weights and gradients too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one rank holds, in bytes. The first three stay; the others come and go.

    weights, gradients, optimizer   its parts; optimizer: masters with Muon's one moment, AdamW's two
    saving        copies of the optimiser's tensors, while a checkpoint is written
    gathered      whole weights and gradients of the layers that are computed just now, and of embedding and head
    activations   what the passes keep as the recipe says; activations_kept, activations_recomputed: without and with
                  parallel.recompute
    update        what an update needs besides, its largest piece
    """

    rank: int
    weights: int
    gradients: int
    optimizer: int
    saving: int
    gathered: int
    activations: int
    activations_kept: int
    activations_recomputed: int
    update: int

    @property
    def stays(self) -> int:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """All at once at the worst moment: passes and update follow one another, a checkpoint goes along with both."""
        return self.stays + self.saving + max(self.gathered + self.activations, self.update)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run in numbers. Replicas hold the same, so `ranks` are those of the first one of each stage.

    start   bytes of the whole float32 model, which each rank makes on its device before it is divided
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


class Weight(NamedTuple):
    """A parameter by name, with the numbers of it that a rank keeps, that a pass puts together (`used`), and that an
    update does (`whole`). Matrices of one `stack` are updated together."""

    name: str
    is_matrix: bool
    stack: tuple[int, ...]
    kept: int
    used: int
    whole: int


def plan(recipe: Recipe, config: LlamaConfig) -> Plan:
    """Returns what a recipe would take. Raises ConfigError, with field, value and remedy, for an impossible layout."""
    layout = recipe.parallel
    mesh.check(layout, config, recipe.batch)
    dtype = getattr(torch, recipe.compute.dtype)
    kept = Kept(config, layout, recipe.batch, dtype, recipe.loss.chunk)
    with torch.device("meta"):
        model = Llama(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    matrices = {name for name, parameter in model.named_parameters() if is_matrix(name, parameter)}
    held = []
    each = layout.shard * layout.context * layout.tensor
    for stage in range(layout.pipeline):
        own = {name: shape for name, shape in shapes.items() if _stage_of(name, config, layout) == stage}
        for member in range(each):
            weights = list(_parts(own, matrices, layout, member))
            rank = stage * layout.replicate * each + member
            held.append(_held(rank, stage, weights, recipe, config, kept))
    count = count_parameters(config)
    batch = recipe.batch.rows * recipe.batch.row_len * recipe.batch.accumulate
    return Plan(
        layout=layout,
        device=recipe.compute.device,
        total=count.total,
        active=count.activated,
        start=count.total * MASTER,
        batch=batch,
        tokens=batch * recipe.schedule.steps,
        ranks=tuple(held),
    )


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
        if plan.start > memory:
            rows += [
                f"But each rank begins with the whole model in float32 on its device, {plan.start / 1e9:.0f} GB, which "
                "does not fit: a run of this size cannot begin yet."
            ]
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


def _stage_of(name: str, config: LlamaConfig, layout: ParallelRecipe) -> int:
    """Returns the stage that holds a parameter, as `stage.Stage` takes a model apart."""
    n, stages = config.text.n_layers, layout.pipeline
    if name.startswith("layers."):
        layer = int(name.split(".")[1])
        return next(s for s in range(stages) if layer < n * (s + 1) // stages)
    return stages - 1 if name.startswith(("norm.", "head.")) else 0


def _parts(shapes: dict[str, torch.Size], matrices: set[str], layout: ParallelRecipe, member: int) -> Iterator[Weight]:
    """Yields what rank number `member` of a stage's first replica keeps, as `spread.spread` divides it."""
    each = layout.shard * layout.context * layout.tensor
    for name, shape in shapes.items():
        size = list(shape)
        is_expert = len(shape) == 3
        cuts = cuts_of(name)
        if is_expert:
            size[0] //= layout.expert
            ranks, place = each // layout.expert, member // layout.expert
        else:
            ranks, place = each // layout.tensor, member // layout.tensor
            if cuts and len(shape) == 2:
                size[cuts[0].axis] //= layout.tensor
        used = math.prod(size)
        length = math.ceil(size[0] / ranks)
        own = min(max(size[0] - place * length, 0), length)
        kept = used // size[0] * own
        axis = cuts[0].axis if cuts and layout.tensor > 1 else 0
        yield Weight(name, name in matrices, (*shape, axis), kept, used, kept if is_expert else math.prod(shape))


def _held(rank: int, stage: int, weights: list[Weight], recipe: Recipe, config: LlamaConfig, kept: Kept) -> Held:
    layout, dtype = recipe.parallel, getattr(torch, recipe.compute.dtype)
    n = sum(each.kept for each in weights)
    moments = sum(each.kept * (1 if each.is_matrix else 2) for each in weights)
    own_bytes = n * (dtype.itemsize if layout.world == 1 else MASTER)
    with_all, with_inputs = _activations(stage, recipe, config, kept)
    return Held(
        rank=rank,
        weights=own_bytes,
        gradients=own_bytes,
        optimizer=(n + moments) * MASTER,
        saving=(n + moments) * MASTER,
        gathered=0 if layout.world == 1 else _gathered(weights, dtype.itemsize),
        activations=with_inputs if layout.recompute and layout.world > 1 else with_all,
        activations_kept=with_all,
        activations_recomputed=with_inputs,
        update=_update(weights),
    )


def _activations(stage: int, recipe: Recipe, config: LlamaConfig, kept: Kept) -> tuple[int, int]:
    """Returns bytes without and with `recompute`. A pipeline's stage has several batches under way, the first most."""
    layout, n = recipe.parallel, config.text.n_layers
    layers = range(n * stage // layout.pipeline, n * (stage + 1) // layout.pipeline)
    under_way = layout.pipeline - stage
    tower = kept.tower if stage == 0 else 0
    head = kept.head if stage == layout.pipeline - 1 else 0
    sizes = [kept.layer(layer) for layer in layers]
    return (
        (sum(sizes) + tower) * under_way + head,
        (kept.state * len(sizes) + tower) * under_way + max(max(sizes), head),
    )


def _gathered(weights: list[Weight], itemsize: int) -> int:
    """Two layers' weights, since the next is fetched ahead; one's gradients, before they are divided; and the weights
    of embedding, head and tower, which stay together through a pass."""
    groups: dict[str, int] = {}
    for each in weights:
        group = ".".join(each.name.split(".")[:2]) if each.name.startswith("layers.") else ""
        groups[group] = groups.get(group, 0) + each.used
    around = groups.pop("", 0)
    layer = max(groups.values(), default=0)
    return around * itemsize + 2 * layer * itemsize + max(layer, around) * (itemsize + MASTER)


def _update(weights: list[Weight]) -> int:
    """The largest of what `Optimizer.step` makes at a time. Muon: gradients of a stack side by side; where matrices are
    divided, all of them whole; and in its iteration of each a float32 quotient and a bfloat16 image. AdamW: scaled
    gradients and divisors."""
    stacks: dict[tuple[int, ...], tuple[int, int]] = {}
    adamw = 0
    for each in weights:
        if not each.is_matrix:
            adamw += each.kept
            continue
        kept, whole = stacks.get(each.stack, (0, 0))
        stacks[each.stack] = kept + each.kept, whole + each.whole
    muon = [kept * MASTER + (whole * MASTER if whole > kept else 0) + whole * 6 for kept, whole in stacks.values()]
    return max([adamw * 2 * MASTER, *muon])
