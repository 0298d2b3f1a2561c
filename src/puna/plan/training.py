"""What training takes of each rank, in bytes: what stays, and what comes and goes in a step.

In: a configuration, a layout and the shape of a batch. Out: `Held`, a rank each. Weights, gradients and the optimiser's
state are exact (tests compare them with what ranks really hold); what comes and goes is an estimate, without what an
allocator cannot use. `train.plan` asks this of a recipe, `search` of many layouts.
Not here: how ranks share weights (`shares`), what a pass keeps (`activations`), and how long it takes (`step`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from puna.card.params import Weight
from puna.config import LlamaConfig
from puna.plan.activations import Kept, Shape
from puna.plan.shares import Part, Training, axis_of, layers_of, trained

MASTER = 4
"""Bytes of a float32 number: of master weights, moments and, on ranks, weights and gradients too."""

Matrices = Literal["muon", "adamw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained: a batch of `shape` at a time, `accumulate` batches a step, matrices updated by `matrices`."""

    config: LlamaConfig
    layout: Training
    shape: Shape
    accumulate: int
    matrices: Matrices = "muon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one rank holds, in bytes. The first three stay; the others come and go.

    weights, gradients, optimizer   its parts; optimizer: masters with Muon's one moment, AdamW's two
    saving        copies of the optimiser's tensors, while a checkpoint is written
    gathered      whole weights and gradients of the layers that are computed just now, and of embedding and head
    activations   what the passes keep as the layout says; activations_kept, activations_recomputed: without and with
                  `recompute`
    backward      what the way back through one layer makes meanwhile, less gradients that do not exist yet
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
    backward: int
    update: int

    @property
    def stays(self) -> int:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """All at once at the worst moment: passes and update follow one another, a checkpoint goes along with both."""
        return self.stays + self.saving + max(self.gathered + self.activations + self.backward, self.update)

    def parts(self) -> dict[str, int]:
        """Returns the bars of a drawing; they add up to `peak`."""
        held = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        held["checkpoint"] = self.saving
        if self.gathered + self.activations + self.backward < self.update:
            return held | {"update": self.update}
        held |= {"gathered": self.gathered, "activations": self.activations}
        if self.backward < 0:
            return held | {"gradients": self.gradients + self.backward}
        return held | {"way back": self.backward}


def ranks(job: Job, kept: Kept) -> Iterator[Held]:
    """Yields what each rank of the first replica of every stage holds; replicas hold the same."""
    layout = job.layout
    for stage in range(layout.pipeline):
        for member in range(layout.team):
            yield rank(job, kept, stage, member)


def rank(job: Job, kept: Kept, stage: int, member: int) -> Held:
    """Returns what rank number `member` of a stage's first replica holds."""
    layout, itemsize = job.layout, job.shape.itemsize
    weights = list(trained(job.config, layout, stage, member))
    n = sum(each.kept * each.times for each in weights)
    moments = sum(each.kept * each.times * (1 if _is_muons(each.weight, job) else 2) for each in weights)
    own_bytes = n * (itemsize if layout.world == 1 else MASTER)
    with_all, with_inputs = _activations(job, kept, stage)
    is_only = job.accumulate == layout.readers  # batch of the step: gradients come as its activations go
    largest = max(kept.layer(layer) for layer in layers_of(job.config.text.n_layers, layout.pipeline, stage))
    return Held(
        rank=stage * layout.replicate * layout.team + member,
        weights=own_bytes,
        gradients=own_bytes,
        optimizer=(n + moments) * MASTER,
        saving=(n + moments) * MASTER,
        gathered=0 if layout.world == 1 else _gathered(weights, itemsize, layout.pipeline > 1),
        activations=with_inputs if layout.recompute and layout.world > 1 else with_all,
        activations_kept=with_all,
        activations_recomputed=with_inputs,
        backward=largest - (own_bytes if is_only else 0),
        update=_update(weights, job),
    )


def is_matrix(weight: Weight) -> bool:
    """Whether Muon may update a weight, as `train.optim` says: linear maps and stacks of them, not tables of rows."""
    tables = weight.part in ("embedding", "head", "router") or weight.name in (
        "vision.positions",
        "vision.patch.weight",
    )
    return len(weight.shape) >= 2 and not tables


def _is_muons(weight: Weight, job: Job) -> bool:
    return job.matrices == "muon" and is_matrix(weight)


def _activations(job: Job, kept: Kept, stage: int) -> tuple[int, int]:
    """Returns bytes without and with `recompute`. A pipeline's stage has several batches under way, the first most."""
    layout = job.layout
    layers = layers_of(job.config.text.n_layers, layout.pipeline, stage)
    under_way = layout.pipeline - stage
    tower = kept.tower if stage == 0 else 0
    head = kept.head if stage == layout.pipeline - 1 else 0
    sizes = [kept.layer(layer) for layer in layers]
    return (
        (sum(sizes) + tower) * under_way + head,
        (kept.state * len(sizes) + tower) * under_way + max(max(sizes), head),
    )


def _gathered(weights: list[Part], itemsize: int, is_stage: bool) -> int:
    """What is whole for a while. Two layers' weights, since the next is fetched ahead; one's gradients, before they are
    divided; and the weights of embedding, head and tower, which stay together through a pass. A pipeline's stage leaves
    all its weights together after a batch, and its gradients whole, in float32, until the step's last one."""
    around = sum(each.used * each.times for each in weights if each.weight.layer is None)
    layers = [each for each in weights if each.weight.layer is not None]
    experts = sum(each.used for each in layers if each.weight.part in ("routed_experts", "shared_experts", "router"))
    dense = sum(each.used for each in layers if each.weight.part == "dense")
    layer = sum(each.used for each in layers) - min(experts, dense)  # a layer has either
    if is_stage:
        used = around + sum(each.used * each.times for each in layers)
        return used * (itemsize + MASTER) + max(layer, around) * itemsize
    return around * itemsize + 2 * layer * itemsize + max(layer, around) * (itemsize + MASTER)


def _update(weights: list[Part], job: Job) -> int:
    """The largest of what `train.optim.Optimizer.step` makes at a time. Muon: gradients of a stack side by side; where
    matrices are divided, all of them whole; and in its iteration of each a float32 quotient and a bfloat16 image.
    AdamW goes piece after piece, a few megabytes each."""
    stacks: dict[tuple[int, ...], tuple[int, int]] = {}
    for each in weights:
        if not _is_muons(each.weight, job):
            continue
        alike = (*each.weight.shape, axis_of(each.weight) if job.layout.tensor > 1 else 0)
        kept, whole = stacks.get(alike, (0, 0))
        stacks[alike] = kept + each.kept * each.times, whole + each.whole * each.times
    muon = [kept * MASTER + (whole * MASTER if whole > kept else 0) + whole * 6 for kept, whole in stacks.values()]
    return max(muon, default=0)
