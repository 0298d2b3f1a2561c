"""How long the pieces of a training step take: products, memory traffic, and what ranks tell each other.

In: a job and a cluster. Out: seconds by piece, for a layer of each kind and for what lies around them. A piece of
arithmetic takes its operations at the share of the peak that large products reach, and then the bytes that everything
between products moves; nothing of that overlaps. Exchanges take bytes over links, and a message's time.
Not here: what overlaps with what and who waits for whom (`pipeline`, `simulate`).

Source: a multiply-add is two operations, and a backward pass has two products for each of a forward pass; collectives
as rings: n ranks move (n-1)/n of the whole to gather it, twice that to sum it up. Which collectives there are is told
by `train.exchange`, `train.spread` and torch's styles of tensor parallelism: every map that is cut along its outputs
sums up the gradient of what it read on its own. FSDP2 copies what it gathers and reduces in and out of one buffer, on
GPUs beside the links.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from puna.hardware import Collective, Numbers
from puna.plan.activations import Kept
from puna.plan.cluster import Cluster
from puna.plan.shares import layers_of, trained
from puna.plan.training import MASTER, Job, is_matrix

NEWTON_SCHULZ_STEPS = 5  # of Muon, as in `train.optim`

LOGIT_PASSES, SCORE_PASSES = 18, 13
"""How often torch's operations, each on its own, read or write logits and scores, there and back, in float32: products,
log-sum-exp, softmax, targets and weights; bias, softmax and its gradient. Source: `next_token.head_chunk`, `Banded`."""

KEYS: tuple[Collective, Collective] = ("gather", "reduce")
"""How keys of other stretches come, and how their gradients go home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What no datasheet says.

    multiply, read, link   shares of the peaks that good kernels and collectives reach
    imbalance              rows that the busiest rank's experts get, over the mean
    numbers                of the decoder's products with weights: "bfloat16" or "fp8"; attention stays bfloat16
    """

    multiply: float = 0.62
    read: float = 0.8
    link: float = 0.7
    imbalance: float = 1.1
    numbers: Numbers = "bfloat16"


class Exchange(NamedTuple):
    """What one rank sends for a purpose in a step of one batch, in bytes and seconds."""

    n_bytes: float
    seconds: float

    def times(self, n: float) -> "Exchange":
        """Returns n of them, one after the other."""
        return Exchange(n * self.n_bytes, n * self.seconds)

    def then(self, other: "Exchange") -> "Exchange":
        """Returns both, one after the other."""
        return Exchange(self.n_bytes + other.n_bytes, self.seconds + other.seconds)


NOTHING = Exchange(0.0, 0.0)


class Ways(NamedTuple):
    """What ranks exchange at one place of a layer, on the way there and on the way back."""

    there: Exchange
    back: Exchange

    def back_again(self, recompute: bool) -> Exchange:
        """Returns that of the way back, which begins with the way there where layers are computed again."""
        return self.back.then(self.there) if recompute else self.back


class Layer(NamedTuple):
    """One layer: seconds of arithmetic of its two halves, forward; what ranks tell each other: keys of other stretches,
    sums behind (and, on the way back, before) either half, rows to experts and home again, weights; useful operations.
    """

    attention: float
    experts: float
    keys: Ways
    attention_sums: Ways
    experts_sums: Ways
    dispatch: Ways
    gather: Exchange
    reduce: Exchange
    flops: float


class Step:
    """Seconds of the pieces of a training step. `flops` counts useful operations alone: no recomputing, no waste."""

    def __init__(self, job: Job, cluster: Cluster, assumed: Assumed) -> None:
        self.job, self.cluster, self.assumed = job, cluster, assumed
        self.kept = Kept(job.config, job.layout, job.shape)
        hardware = cluster.hardware
        self._products = hardware.rate(assumed.numbers) * assumed.multiply
        self._floats = hardware.rate("bfloat16") * assumed.multiply
        self._read = hardware.read_bytes * assumed.read
        self._layers: dict[tuple[bool, bool], Layer] = {}

    @property
    def tokens(self) -> int:
        """Tokens that the ranks of a context group each have of one batch."""
        shape = self.job.shape
        return shape.rows * shape.row_len // self.job.layout.context

    @property
    def batches(self) -> int:
        """Batches that each reader passes through the pipeline in a step."""
        return -(-self.job.accumulate // self.job.layout.readers)

    @cached_property
    def backward(self) -> float:
        """Seconds of the way back over those of the way there, for arithmetic; with `recompute` the way there again."""
        return 3.0 if self.job.layout.recompute else 2.0

    def layer(self, index: int) -> Layer:
        """Returns the pieces of one layer; layers of one kind take as long as each other."""
        text = self.job.config.text
        kind = (index in text.rope_layers, text.is_moe(index))
        if kind not in self._layers:
            self._layers[kind] = self._layer(index)
        return self._layers[kind]

    def _layer(self, index: int) -> Layer:
        job, layout, text = self.job, self.job.layout, self.job.config.text
        T, D, b = self.tokens, text.width, job.shape.itemsize
        stage = next(s for s in range(layout.pipeline) if index in layers_of(text.n_layers, layout.pipeline, s))
        heads = text.n_heads * text.head_dim
        maps = 2.0 * T * D * (2 * heads + 2 * text.n_kv_heads * text.head_dim) / layout.tensor
        computed, useful = self._scores(index)
        if text.is_moe(index):
            one = 2.0 * T * 3 * D * text.expert_width / layout.tensor
            forward, busiest = (
                one * (1 + text.n_active_experts),
                one * (1 + text.n_active_experts * self.assumed.imbalance),
            )
        else:
            forward = busiest = 2.0 * T * 3 * D * text.dense_width / layout.tensor
        traffic = 2.0 * self.kept.layer(index) / self._read  # what is kept is written once and read once, about
        own, others = self._streamed(stage, index)
        if self._is_unfused:  # what is kept counts as two passes there and four back
            own += computed / text.head_dim * (SCORE_PASSES - 6) / 3 / self._read
        attention = maps / self._products + computed / self._floats + traffic / 2 + own
        experts = busiest / self._products + traffic / 2 + others
        state = T * D * b
        rows = state * text.n_active_experts / layout.tensor * self.assumed.imbalance if text.is_moe(index) else 0.0
        moved = self._exchange(rows, layout.expert, 1, messages=1.5)  # either way; before both, how many come
        total = self._sum(state, layout.tensor, 1)
        dealt = self._ring("gather", state, layout.tensor, 1) if text.is_moe(index) else NOTHING  # of tokens to ranks
        return Layer(
            attention=attention,
            experts=experts,
            keys=self._keys(index),
            attention_sums=Ways(total, total.times(3)),  # on the way back of query, key and value
            experts_sums=Ways(total.then(dealt), total.times(2).then(dealt)),  # of gate and up
            dispatch=Ways(moved, moved),
            gather=self._gathers("gather", stage, index),
            reduce=self._gathers("reduce", stage, index),
            flops=maps + useful + forward,
        )

    def _streamed(self, stage: int, index: int) -> tuple[float, float]:
        """Seconds in which the weights of a layer's halves are read where that overlaps with nothing: on a processor.
        On the way back they are read again, and as many gradients are written; those of routed experts are then read
        and written once more, as one stack: five passes in place of three."""
        if not self.cluster.hardware.is_cpu:
            return 0.0, 0.0
        of, is_moe = self._used, self.job.config.text.is_moe(index)
        parts = ("router", "shared_experts") if is_moe else ("dense",)
        others = sum(of.get((stage, part), 0) for part in parts)
        stacks = of.get((stage, "routed_experts"), 0) if is_moe else 0
        attention, rest = of.get((stage, "attention"), 0), others + stacks * (5 / 3 if self._is_unfused else 1.0)
        return attention * self.job.shape.itemsize / self._read, rest * self.job.shape.itemsize / self._read

    @property
    def _is_unfused(self) -> bool:
        """Whether every operation between products reads and writes memory, as torch's do on a processor."""
        return self.cluster.hardware.is_cpu and not self.job.shape.kernels

    def _keys(self, index: int) -> Ways:
        """Keys and values of a row's other stretches; chunked layers need none where stretches are whole chunks."""
        job, text, layout = self.job, self.job.config.text, self.job.layout
        chunk, stretch = text.chunk_len_of(index), job.shape.row_len // layout.context
        if layout.context == 1 or (chunk is not None and stretch % chunk == 0):
            return Ways(NOTHING, NOTHING)
        own = self.tokens * text.n_kv_heads * text.head_dim // layout.tensor * job.shape.itemsize
        each = (self._ring(kind, own * layout.context, layout.context, layout.tensor) for kind in KEYS)
        there, back = (exchange.times(2) for exchange in each)  # keys, and values
        return Ways(there, back)

    def _scores(self, index: int) -> tuple[float, float]:
        """Operations of attention itself: what is computed, by the rank with most where ranks share rows, since the
        last stretch sees the whole row; and what a causal mask leaves of it on average."""
        job, text, row = self.job, self.job.config.text, self.job.shape.row_len
        chunk = text.chunk_len_of(index)
        seen = min(chunk or row, row) / 2
        if not job.shape.scores:
            made = seen * (2 - 1 / job.layout.context)
        elif job.layout.context > 1 or chunk is None or chunk >= row:
            made = row
        else:
            made = 2 * chunk
        each = 4.0 * self.tokens * text.n_heads * text.head_dim / job.layout.tensor
        return each * made, each * seen

    def head(self) -> tuple[float, float]:
        """Returns seconds and operations of the head with its loss, there and back."""
        text = self.job.config.text
        flops = 6.0 * self.tokens * text.width * text.vocab_size / self.job.layout.tensor
        traffic = 2.0 * self.kept.head
        if self._is_unfused:
            traffic = LOGIT_PASSES * MASTER * self.tokens * text.vocab_size / self.job.layout.tensor
        return flops / self._floats + traffic / self._read, flops

    def hand_over(self) -> Exchange:
        """Returns what goes from a stage to the next, and on the way back."""
        layout = self.job.layout
        if layout.pipeline == 1:
            return NOTHING
        n_bytes = self.tokens * self.job.config.text.width * self.job.shape.itemsize
        stride = layout.team * layout.replicate
        return Exchange(n_bytes, self._seconds("exchange", n_bytes, self.cluster.exchange(2, stride), 2, stride))

    def head_sums(self) -> Exchange:
        """Returns what ranks that share matrices sum up around the layers: embeddings, and gradients of last states."""
        job = self.job
        return self._sum(self.tokens * job.config.text.width * job.shape.itemsize, job.layout.tensor, 1).times(2)

    @cached_property
    def _used(self) -> dict[tuple[int, str], int]:
        """Numbers that a pass puts together, by stage and what for: "experts", "router" and so on by part for a layer,
        "around" for what lies around the layers."""
        found: dict[tuple[int, str], int] = {}
        for stage in range(self.job.layout.pipeline):
            for part in trained(self.job.config, self.job.layout, stage, 0):
                key = stage, "around" if part.weight.layer is None else part.weight.part
                found[key] = found.get(key, 0) + part.used * (part.times if part.weight.layer is None else 1)
        return found

    def replicas(self, stage: int) -> Exchange:
        """Returns the sum of gradients over whole copies of a stage, once a step."""
        layout = self.job.layout
        kept = sum(part.kept * part.times for part in trained(self.job.config, layout, stage, 0))
        return self._sum(kept * MASTER, layout.replicate, layout.team)

    def around(self, stage: int) -> tuple[Exchange, Exchange]:
        """Returns gathering and reducing of what lies around the layers of a stage: embedding, head, tower."""
        return self._gathers("gather", stage, None), self._gathers("reduce", stage, None)

    def update(self, stage: int) -> float:
        """Returns seconds of the optimiser: every number of its state read and written, and Muon's iterations; and of
        adding up the gradients of a step's batches, which a pipeline's stage keeps whole."""
        layout, job = self.job.layout, self.job
        n_bytes = flops = 0.0
        for part in trained(job.config, layout, stage, 0):
            muons = job.matrices == "muon" and is_matrix(part.weight)
            n_bytes += part.times * part.kept * MASTER * (7 if muons else 9)
            summed = part.used if layout.pipeline > 1 else part.kept
            n_bytes += part.times * summed * MASTER * 3 * (self.batches - 1)
            if muons:
                flops += part.times * _newton_schulz(part.weight.shape, part.whole)
        return n_bytes / self._read + flops / self._floats

    def quick_seconds(self) -> float:
        """Returns about the seconds of the step, without simulating it: passes of the slowest stage, one after another,
        and what overlaps taken as overlapping whole."""
        layout, slowest = self.job.layout, 0.0
        for stage in range(layout.pipeline):
            layers = [self.layer(i) for i in layers_of(self.job.config.text.n_layers, layout.pipeline, stage)]
            work = sum((each.attention + each.experts) * (1 + self.backward) for each in layers)
            waits = sum(
                way.there.seconds + way.back_again(layout.recompute).seconds
                for each in layers
                for way in (each.keys, each.attention_sums, each.dispatch, each.dispatch, each.experts_sums)
            )
            moved = sum(each.gather.seconds * 2 + each.reduce.seconds for each in layers)
            if layout.pipeline > 1:
                moved = sum(each.gather.seconds for each in layers)
            if stage == layout.pipeline - 1:
                work += self.head()[0]
            slowest = max(slowest, work + waits, moved)
        return slowest * (self.batches + layout.pipeline - 1) + self.update(0) + self.replicas(0).seconds

    def stage_flops(self, stage: int) -> float:
        """Returns useful operations of one batch on one rank of a stage, there and back."""
        layers = layers_of(self.job.config.text.n_layers, self.job.layout.pipeline, stage)
        total = 3.0 * sum(self.layer(index).flops for index in layers)
        return total + (self.head()[1] if stage == self.job.layout.pipeline - 1 else 0.0)

    # Exchanges

    def _gathers(self, kind: Literal["gather", "reduce"], stage: int, index: int | None) -> Exchange:
        """Returns putting a layer's weights together from all ranks that keep parts of them, or, the same the other way
        round, reducing their gradients: dense parts over shard x context, experts over what `expert` leaves."""
        layout, experts = self.job.layout, 0
        itemsize = self.job.shape.itemsize if kind == "gather" else MASTER
        if layout.world == 1:
            return NOTHING
        if index is None:
            dense = self._used.get((stage, "around"), 0)
        else:
            is_moe = self.job.config.text.is_moe(index)
            parts = ("attention", "norms", "router", "shared_experts") if is_moe else ("attention", "norms", "dense")
            dense = sum(self._used.get((stage, part), 0) for part in parts)
            experts = self._used.get((stage, "routed_experts"), 0) if is_moe else 0
        found, copies = NOTHING, 2 / self._read if self.cluster.hardware.is_cpu else 0.0
        for used, ranks, stride in (
            (dense, layout.shard * layout.context, layout.tensor),
            (experts, layout.team // layout.expert, layout.expert),
        ):
            if used:
                whole = used * itemsize
                found = found.then(self._ring(kind, whole, ranks, stride)).then(Exchange(0.0, copies * whole))
        return found

    def _ring(self, kind: Collective, whole: float, ranks: int, stride: int) -> Exchange:
        if ranks == 1 or not whole:
            return NOTHING
        n_bytes = whole * (ranks - 1) / ranks
        return Exchange(n_bytes, self._seconds(kind, n_bytes, self.cluster.ring(ranks, stride), ranks, stride))

    def _sum(self, n_bytes: float, ranks: int, stride: int) -> Exchange:
        if ranks == 1:
            return NOTHING
        moved = 2 * n_bytes * (ranks - 1) / ranks
        return Exchange(moved, self._seconds("sum", moved, self.cluster.ring(ranks, stride), ranks, stride))

    def _exchange(self, n_bytes: float, ranks: int, stride: int, messages: float = 1.0) -> Exchange:
        if ranks == 1 or not n_bytes:
            return NOTHING
        moved = n_bytes * (ranks - 1) / ranks
        rate = self.cluster.exchange(ranks, stride)
        return Exchange(moved, self._seconds("exchange", moved, rate, ranks, stride, messages))

    def _seconds(
        self, kind: Collective, n_bytes: float, rate: float, ranks: int, stride: int, messages: float = 1.0
    ) -> float:
        """`rate`: that of the links, for collectives that nobody measured."""
        measured = self.cluster.hardware.collectives.get(kind)
        if measured is not None:
            return n_bytes / measured.n_bytes + messages * measured.seconds
        return n_bytes / (rate * self.assumed.link) + messages * self.cluster.latency(ranks, stride)


def _newton_schulz(shape: tuple[int, ...], size: int) -> float:
    """Operations of Muon's iteration on matrices of this shape that have `size` numbers together."""
    rows, columns = shape[-2:]
    if len(shape) == 3 and rows > columns:  # gate and up of an expert are two maps
        rows //= 2
    short, long = min(rows, columns), max(rows, columns)
    return NEWTON_SCHULZ_STEPS * (4.0 * short * short * long + 2.0 * short**3) * size / (rows * columns)
