"""What serving takes of each rank, and how fast it can be at best: bytes, the longest context, floors of both phases.

In: a configuration, a cluster, a layout and what is asked for. Out: a `Served`. Bytes of weights, keys and values are
exact, those of a step are `forward`'s. A *floor* is what bytes and operations allow at the hardware's full speed, with
nothing else in the way: no engine can be faster. An *estimate* takes what good kernels reach (`REACHED`) and adds what
ranks tell each other.
Not here: which layout is best (`search`), images, guesses of next tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from puna.card import memory
from puna.card.memory import Scheme
from puna.config import LlamaConfig, TextConfig
from puna.hardware import Hardware, Numbers
from puna.plan import forward, stored
from puna.plan.cluster import Cluster
from puna.plan.floor import keys_read, weights_read
from puna.plan.forward import MAX_STEP_TOKENS
from puna.plan.shares import Serving, every_weight, layers_of, served

KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}


class Reached(NamedTuple):
    """Shares of the hardware's peaks that good kernels reach: of reading memory, of multiplying, of links."""

    read: float
    multiply: float
    link: float


REACHED = Reached(read=0.8, multiply=0.6, link=0.7)
"""Typical of large products and long streams of GPUs; of a processor, speeds are measured instead. docs/plan.md holds
estimates against measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be served: `batch` sequences of up to `context` positions each, in which numbers.

    `stored`: how files hold the weights, whose floats have `float_bytes`; `scheme`: what `--quantize` makes of them.
    """

    context: int
    batch: int
    scheme: str = "none"
    float_bytes: int = 2
    kv_dtype: str = "bfloat16"
    stored: Scheme = memory.SCHEMES["none"]

    @property
    def numbers(self) -> Scheme:
        """The weights as they are served."""
        return stored.changed(self.stored, self.scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """What one rank holds, in bytes. weights: by part; kv: of all sequences; step: what a step needs besides."""

    rank: int
    weights: dict[str, int]
    kv: int
    step: int
    reserve: int

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.kv + self.step + self.reserve

    def parts(self) -> dict[str, int]:
        """Returns the bars of a drawing; they add up to `total`."""
        held = {name.replace("_", " "): n for name, n in self.weights.items() if n}
        return held | {"keys and values": self.kv, "step": self.step, "driver": self.reserve}


class Phase(NamedTuple):
    """Seconds of a step and tokens a second of the whole cluster, at best and as estimated, and what bounds it."""

    floor_seconds: float
    seconds: float
    floor_tokens: float
    tokens: float
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One layout in numbers. `ranks`: of one engine, the first of each stage; others of a team hold the same."""

    layout: Serving
    ranks: tuple[RankBytes, ...]
    memory_bytes: int
    longest_context: int
    most_sequences: int
    communication: dict[str, float]
    prefill: Phase
    decode: Phase

    @property
    def fullest(self) -> RankBytes:
        return max(self.ranks, key=lambda rank: rank.total)

    @property
    def fits(self) -> bool:
        return self.fullest.total <= self.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "ranks": [
                {
                    "rank": r.rank,
                    "weights": r.weights,
                    "kv": r.kv,
                    "step": r.step,
                    "reserve": r.reserve,
                    "total": r.total,
                }
                for r in self.ranks
            ],
            "longest_context": self.longest_context,
            "most_sequences": self.most_sequences,
            "communication": self.communication,
            "prefill": self.prefill._asdict(),
            "decode": self.decode._asdict(),
        }


def serve(config: LlamaConfig, cluster: Cluster, layout: Serving, asked: Asked) -> Served:
    """Returns what a layout takes and allows. It must divide the model (`shares.check_serving`)."""
    hardware, element = cluster.hardware, KV_BYTES[asked.kv_dtype]
    scheme = asked.numbers
    each = math.ceil(asked.batch / layout.replicate)
    ranks = tuple(_rank(config, hardware, layout, asked, scheme, stage, each) for stage in range(layout.pipeline))
    room = [hardware.memory_bytes - rank.total + rank.kv for rank in ranks]
    texts = [_share(config.text, layout, stage) for stage in range(layout.pipeline)]
    longest = min(
        memory.longest(text, max(left, 0) // max(each, 1), element) for text, left in zip(texts, room, strict=True)
    )
    most = min(
        max(left, 0) // max(1, memory.sequence_bytes(text, asked.context, element))
        for text, left in zip(texts, room, strict=True)
    )
    return Served(
        layout=layout,
        ranks=ranks,
        memory_bytes=hardware.memory_bytes,
        longest_context=longest,
        most_sequences=most * layout.replicate,
        communication=_communication(config.text, layout, each),
        prefill=_prefill(config, cluster, layout, asked, ranks),
        decode=_decode(config, cluster, layout, asked, ranks, each),
    )


def _rank(
    config: LlamaConfig, hardware: Hardware, layout: Serving, asked: Asked, scheme: Scheme, stage: int, sequences: int
) -> RankBytes:
    weights: dict[str, int] = {}
    for weight in served(config, layout, stage):
        n_bytes = memory.weight_bytes(weight, scheme, asked.float_bytes, config.text.n_layers)
        weights[weight.part] = weights.get(weight.part, 0) + n_bytes
    text = _share(config.text, layout, stage)
    share, tokens = replace(config, text=text), forward.step_tokens(text, sequences, asked.context)
    if hardware.has_kernels and not any(each.is_float for each in scheme.small.values()):  # which they do not know
        step = forward.kernels_bytes(share, tokens, sequences, scheme, asked.float_bytes)
    else:
        step = forward.torch_bytes(share, tokens, sequences, asked.float_bytes)
    return RankBytes(
        rank=stage * layout.team,
        weights=weights,
        kv=sequences * memory.sequence_bytes(text, asked.context, KV_BYTES[asked.kv_dtype]),
        step=step,
        reserve=hardware.reserve_bytes,
    )


def _share(text: TextConfig, layout: Serving, stage: int) -> TextConfig:
    """Returns the decoder as a rank of a stage sees it, as `parallel.Share` does."""
    team, own = layout.team, layers_of(text.n_layers, layout.pipeline, stage)
    first, held = own.start, set(own)
    return replace(
        text,
        n_layers=len(own),
        n_heads=text.n_heads // team,
        n_kv_heads=max(1, text.n_kv_heads // team),
        rope_layers=frozenset(layer - first for layer in text.rope_layers & held),
        moe_layers=frozenset(layer - first for layer in text.moe_layers & held),
        dense_width=text.dense_width // team,
        expert_width=text.expert_width // team,
    )


def loading_bytes(config: LlamaConfig, scheme: Scheme, float_bytes: int = 2) -> int:
    """Returns the most that a process holds while it loads a model whole: all weights, and the largest one twice, as it
    is read and as it becomes; parameters are read one after the other (docs/decisions/006)."""
    n_layers = config.text.n_layers
    sizes = [(memory.weight_bytes(each, scheme, float_bytes, n_layers), each.size) for each in every_weight(config)]
    largest = max(sizes, key=lambda each: each[1])
    twice = largest[1] * float_bytes + (largest[0] if largest[0] < largest[1] * float_bytes else 0)
    return sum(small for small, _ in sizes) + twice


# Floors ---------------------------------------------------------------------------------------------------------------


def seen_flops(text: TextConfig, context: int) -> float:
    """Returns the operations of attention of the average token of a prompt, scores and mixture, all layers."""
    keys = sum(min(context, text.chunk_len_of(layer) or context) / 2 for layer in range(text.n_layers))
    return 4 * text.n_heads * text.head_dim * keys


def _flops(text: TextConfig, with_head: bool) -> float:
    """Returns the operations of one token in a stage's rank, without attention's own; experts as evenly loaded."""
    D, heads = text.width, text.n_heads + 2 * text.n_kv_heads
    attention = D * heads * text.head_dim + text.n_heads * text.head_dim * D
    moe = 3 * D * text.expert_width * (1 + text.n_active_experts)
    layers = sum(attention + (moe if text.is_moe(i) else 3 * D * text.dense_width) for i in range(text.n_layers))
    return 2.0 * (layers + (text.vocab_size * D if with_head else 0))


def numbers_of(scheme: Scheme, hardware: Hardware) -> Numbers:
    """Returns in which numbers products are made: in 8 bits where weights and hardware have them, else in floats.

    A processor that takes four bits apart first loses about what whole numbers of eight save.
    """
    experts = scheme.small.get("routed_experts", scheme.small.get("dense"))
    if experts is None or experts.bits != 8:
        return "bfloat16"
    if experts.is_float:
        return "fp8" if "fp8" in hardware.flops else "bfloat16"
    return "int8" if hardware.is_cpu and "int8" in hardware.flops else "bfloat16"


def _prefill(
    config: LlamaConfig, cluster: Cluster, layout: Serving, asked: Asked, ranks: tuple[RankBytes, ...]
) -> Phase:
    """The phase that reads a prompt of `context` tokens: one step of so many tokens on every stage."""
    hardware, tokens = cluster.hardware, max(1, asked.context)
    rate = hardware.rate(numbers_of(asked.numbers, hardware))
    steps = math.ceil(tokens / MAX_STEP_TOKENS)
    stages = []
    for stage, rank in enumerate(ranks):
        text = _share(config.text, layout, stage)
        flops = tokens * (_flops(text, with_head=False) + seen_flops(text, tokens))
        read = steps * weights_read(text, rank.weights, min(tokens, MAX_STEP_TOKENS), layout.expert)
        stages.append((read / hardware.read_bytes, flops / rate))
    exchanged = _exchange_seconds(config.text, cluster, layout, tokens, steps)
    busy = min(layout.replicate, asked.batch)
    groups = min(layout.pipeline, math.ceil(asked.batch / layout.replicate))
    return _phase(stages, exchanged, hardware, tokens * busy, groups)


def _decode(
    config: LlamaConfig, cluster: Cluster, layout: Serving, asked: Asked, ranks: tuple[RankBytes, ...], sequences: int
) -> Phase:
    """The phase that writes: a token for each sequence. Stages work on as many groups of sequences in turn."""
    hardware, element = cluster.hardware, KV_BYTES[asked.kv_dtype]
    rate = hardware.rate(numbers_of(asked.numbers, hardware))
    groups = min(layout.pipeline, sequences)
    at_once = math.ceil(sequences / groups)
    stages = []
    for stage, rank in enumerate(ranks):
        text = _share(config.text, layout, stage)
        read = weights_read(text, rank.weights, at_once, layout.expert)
        read += at_once * keys_read(text, asked.context, element)
        flops = at_once * _flops(text, with_head=stage == layout.pipeline - 1)
        stages.append((read / hardware.read_bytes, flops / rate))
    exchanged = _exchange_seconds(config.text, cluster, layout, at_once, 1)
    return _phase(stages, exchanged, hardware, at_once * min(layout.replicate, asked.batch), groups)


def _phase(stages: list[tuple[float, float]], exchanged: float, hardware: Hardware, tokens: int, groups: int) -> Phase:
    """stages: seconds of reading and of multiplying of each, at full speed. `groups` go through them at a time."""
    floor = sum(max(each) for each in stages)
    if hardware.is_cpu:  # its speeds were measured, so they can be reached; but its cores read or multiply, not both
        real = sum(map(sum, stages)) + exchanged
    else:
        real = sum(max(read / REACHED.read, multiply / REACHED.multiply) for read, multiply in stages) + exchanged
    reads = sum(read for read, _ in stages) > sum(multiply for _, multiply in stages)
    bound = "links" if exchanged > real / 2 else "memory" if reads else "arithmetic"
    in_turn = groups * tokens
    return Phase(floor, real, in_turn / floor, in_turn / real, bound)


def _communication(text: TextConfig, layout: Serving, tokens: int) -> dict[str, float]:
    """Returns the bytes that a rank sends in a step that decodes `tokens` tokens, by what they are for."""
    state = tokens * text.width * 2
    sums = 2 * text.n_layers / layout.pipeline * 2 * state * (layout.team - 1) / layout.team
    return {"sums of the team": sums, "to the next stage": state if layout.pipeline > 1 else 0.0}


def _exchange_seconds(text: TextConfig, cluster: Cluster, layout: Serving, tokens: int, steps: int) -> float:
    """Two sums a layer over the team, as rings, and one message a stage."""
    team, state = layout.team, tokens * text.width * 2
    seconds = 0.0
    if team > 1:
        each = 2 * (team - 1) / team * state / (cluster.ring(team) * REACHED.link)
        seconds += 2 * text.n_layers * (each + steps * cluster.latency(team) * math.log2(team))
    if layout.pipeline > 1:
        hop = state / (cluster.exchange(2, layout.team) * REACHED.link) + steps * cluster.latency(2, layout.team)
        seconds += (layout.pipeline - 1) * hop
    return seconds
