"""What one rank holds of each weight, when it serves and when it trains: shapes cut by one table, no tensors.

In: a configuration and a layout. Out: the weights of a rank. The same divisions as `parallel.Share` (serving) and
`train.spread` (training), of which this is the arithmetic; tests hold bytes against what ranks really have.
Not here: bytes (`card.memory` and whoever asks).

Source: docs/decisions/009 and 016; FSDP2 divides the first axis as torch.chunk does, the last ranks may get less.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from puna.card.params import Weight, weights
from puna.config import LlamaConfig, require
from puna.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`replicate` engines, each on tensor x expert x pipeline ranks, as `parallel.Layout` explains them."""

    tensor: int = 1
    expert: int = 1
    pipeline: int = 1
    replicate: int = 1

    @property
    def team(self) -> int:
        return self.tensor * self.expert

    @property
    def world(self) -> int:
        return self.team * self.pipeline * self.replicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How ranks share a training, as `train.mesh` explains: `expert` deals out experts within shard x context x tensor.

    `recompute` keeps only what goes into each layer and computes the layer again on the way back.
    """

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    recompute: bool = False

    @property
    def team(self) -> int:
        """Ranks of a stage's replica."""
        return self.shard * self.context * self.tensor

    @property
    def readers(self) -> int:
        """Batches that are read at the same time."""
        return self.replicate * self.shard

    @property
    def world(self) -> int:
        return self.pipeline * self.replicate * self.team


class Part(NamedTuple):
    """A weight with the numbers of it that a training rank keeps, that a pass puts together (`used`), and that an
    update of whole matrices does (`whole`); `times`: how many of a stage's weights are just like it."""

    weight: Weight
    times: int
    kept: int
    used: int
    whole: int


@lru_cache(maxsize=4)
def every_weight(config: LlamaConfig) -> tuple[Weight, ...]:
    """Returns the weights of a model, worked out once."""
    return tuple(weights(config))


@lru_cache(maxsize=4)
def _alike(config: LlamaConfig) -> tuple[tuple[Weight, ...], ...]:
    """Returns the weights in groups that differ in the number of their layer alone: thousands are a few dozen."""
    groups: dict[tuple[str, tuple[int, ...]], list[Weight]] = {}
    for weight in every_weight(config):
        groups.setdefault((re.sub(r"\d+", "", weight.name), weight.shape), []).append(weight)
    return tuple(map(tuple, groups.values()))


@lru_cache(maxsize=256)
def _of_stage(config: LlamaConfig, stages: int, stage: int) -> tuple[tuple[Weight, int], ...]:
    """Returns one of each group that a stage trains, and how many of the group those are."""
    own = layers_of(config.text.n_layers, stages, stage)
    held = ([weight for weight in alike if _is_of_stage(weight, own, stage, stages)] for alike in _alike(config))
    return tuple((group[0], len(group)) for group in held if group)


def layers_of(n_layers: int, stages: int, stage: int) -> range:
    """Returns the consecutive layers of a stage."""
    return range(n_layers * stage // stages, n_layers * (stage + 1) // stages)


def check_serving(layout: Serving, config: LlamaConfig) -> None:
    """Raises ConfigError, naming field and value, where a model cannot be divided so for serving."""
    text, team = config.text, layout.team
    _divides(team, "tensor x expert", text.n_heads, "n_heads")
    _divides(team, "tensor x expert", text.vocab_size, "vocab_size")
    if text.n_kv_heads % team and team % text.n_kv_heads:
        raise ConfigError(
            f"tensor x expert: {team} is neither a divisor nor a multiple of {text.n_kv_heads} n_kv_heads"
        )
    if len(text.moe_layers) < text.n_layers:
        _divides(team, "tensor x expert", text.dense_width, "dense_width")
    if text.moe_layers:
        _divides(team, "tensor x expert", text.expert_width, "expert_width")
        _divides(layout.expert, "expert", text.n_experts, "n_experts")
    elif layout.expert > 1:
        raise ConfigError(f"expert: {layout.expert}, but this model has no experts")
    require(layout.pipeline <= text.n_layers, "pipeline", layout.pipeline, f"at most {text.n_layers} layers")


def check_training(layout: Training, config: LlamaConfig, row_len: int) -> None:
    """Raises ConfigError, naming field and value, where a model cannot be trained on such ranks."""
    text = config.text
    for size, what in ((text.n_heads, "n_heads"), (text.n_kv_heads, "n_kv_heads"), (text.vocab_size, "vocab_size")):
        _divides(layout.tensor, "tensor", size, what)
    if len(text.moe_layers) < text.n_layers:
        _divides(layout.tensor, "tensor", text.dense_width, "dense_width")
    if text.moe_layers:
        _divides(layout.tensor, "tensor", text.expert_width, "expert_width")
        _divides(layout.expert, "expert", text.n_experts, "n_experts")
    elif layout.expert > 1:
        raise ConfigError(f"expert: {layout.expert}, but this model has no experts")
    if layout.team % layout.expert:
        raise ConfigError(f"expert: {layout.expert} does not divide shard x context x tensor, {layout.team}")
    _divides(layout.context, "context", row_len, "tokens of a row")
    require(layout.pipeline <= text.n_layers, "pipeline", layout.pipeline, f"at most {text.n_layers} layers")


def _divides(parts: int, field: str, size: int, what: str) -> None:
    if size % parts:
        raise ConfigError(f"{field}: {parts} does not divide {what}, {size}")


def served(config: LlamaConfig, layout: Serving, stage: int) -> Iterator[Weight]:
    """Yields the weights of each rank of a stage, in the shapes that it holds. All ranks of a team hold as much."""
    own = layers_of(config.text.n_layers, layout.pipeline, stage)
    for weight in every_weight(config):
        outside = (weight.part == "embedding" and stage > 0) or (weight.part == "head" and stage < layout.pipeline - 1)
        if (weight.layer is not None and weight.layer not in own) or outside:
            continue
        yield weight._replace(shape=_cut(weight, config.text.n_kv_heads, layout))


def _cut(weight: Weight, n_kv_heads: int, layout: Serving) -> tuple[int, ...]:
    shape, team = list(weight.shape), layout.team
    if weight.part == "routed_experts":
        shape[0] //= layout.expert
        shape[axis_of(weight)] //= layout.tensor
    elif axis_of(weight) < 0:
        is_kv = weight.name.endswith(("attention.key.weight", "attention.value.weight"))
        shape[axis_of(weight)] //= min(team, n_kv_heads) if is_kv else team
    return tuple(shape)


def axis_of(weight: Weight) -> int:
    """Returns the axis, counted from the end, along which tensor ranks cut a weight; 0: they all keep it whole.

    The table is `parallel`'s: outputs of what comes in, inputs of what goes out.
    """
    if weight.part in ("embedding", "head"):
        return -2
    if weight.part in ("attention", "routed_experts", "shared_experts", "dense"):
        return -1 if weight.name.endswith(("output.weight", "down.weight", "down")) else -2
    return 0


def trained(config: LlamaConfig, layout: Training, stage: int, member: int) -> Iterator[Part]:
    """Yields what rank number `member` of a stage's first replica keeps, what `train.spread` leaves it: one of each
    group of weights that are alike, with their number."""
    each = layout.team
    for weight, times in _of_stage(config, layout.pipeline, stage):
        size = list(weight.shape)
        is_expert = weight.part == "routed_experts"
        if is_expert:
            size[0] //= layout.expert
            ranks, place = each // layout.expert, member // layout.expert
        else:
            ranks, place = each // layout.tensor, member // layout.tensor
            if axis_of(weight) < 0:
                size[axis_of(weight)] //= layout.tensor
        used = math.prod(size)
        length = math.ceil(size[0] / ranks)
        mine = min(max(size[0] - place * length, 0), length)
        kept = used // size[0] * mine
        yield Part(weight, times, kept, used, kept if is_expert else weight.size)


def _is_of_stage(weight: Weight, own: range, stage: int, stages: int) -> bool:
    """Whether a stage trains a weight: the last has norm and head, the first embedding, tower and projector."""
    if weight.layer is not None:
        return weight.layer in own
    return stage == (stages - 1 if weight.name.startswith(("norm.", "head.")) else 0)
