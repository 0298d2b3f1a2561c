"""Every parameter of a model by name, part, layer and shape, from its configuration alone.

In: a configuration. Out: the weights that a model of it has, and how many parameters these are in total, per token and
by part. This is `model.count` without the model: the card imports nothing that it judges, and a test holds the two
against each other, name by name.
Not here: bytes, which depend on how weights are stored (`memory`).

Source of the shapes: the published files, as docs/sources.md lists them; of what counts as activated: `Parameters`.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

from puna.config import LlamaConfig, TextConfig, VisionConfig

Part = Literal[
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense",
    "norms",
    "head",
    "vision",
    "adapter",
    "projector",
]
PARTS: tuple[Part, ...] = get_args(Part)
SEEN_BY_TILES: frozenset[Part] = frozenset({"vision", "adapter", "projector"})
"""What runs once for a tile and never for a token of text."""


class Weight(NamedTuple):
    """A parameter by its name in the model. `layer` is that of the decoder, None outside; matrices are [.. out in]."""

    name: str
    part: Part
    layer: int | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many parameters a model has: `parts` add up to `total`.

    total      all weights, both embeddings and the vision tower included
    activated  what a token of text meets: the decoder with embedding and head, of the routed experts those chosen. The
               embedding counts whole, though a token reads one row. This reading gives the card's 17 billion
    read       what a step must read for one token: `activated` without the embedding and without norms
    """

    total: int
    activated: int
    read: int
    parts: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """Returns JSON values."""
        return asdict(self)


@cache
def weights(config: LlamaConfig) -> tuple[Weight, ...]:
    """Returns every parameter of a model of this configuration."""
    return tuple(_weights(config))


def count(config: LlamaConfig) -> Parameters:
    """Returns the parameter counts of a configuration."""
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for weight in weights(config):
        parts[weight.part] += weight.size
    text = config.text
    total = sum(parts.values())
    chosen = parts["routed_experts"] * text.n_active_experts // text.n_experts if text.moe_layers else 0
    activated = total - sum(parts[part] for part in SEEN_BY_TILES) - parts["routed_experts"] + chosen
    return Parameters(
        total=total, activated=activated, read=activated - parts["embedding"] - parts["norms"], parts=parts
    )


def _weights(config: LlamaConfig) -> Iterator[Weight]:
    text = config.text
    yield Weight("embedding.weight", "embedding", None, (text.vocab_size, text.width))
    for layer in range(text.n_layers):
        yield from _layer(text, layer)
    yield Weight("norm.weight", "norms", None, (text.width,))
    yield Weight("head.weight", "head", None, (text.vocab_size, text.width))
    if config.vision is not None:
        yield from _tower(config.vision)
        yield Weight("projector.weight", "projector", None, (text.width, config.vision.output_width))


def _layer(text: TextConfig, layer: int) -> Iterator[Weight]:
    D, F = text.width, text.expert_width
    queries, keys = text.n_heads * text.head_dim, text.n_kv_heads * text.head_dim
    shapes: dict[str, tuple[Part, tuple[int, ...]]] = {
        "attention_norm.weight": ("norms", (D,)),
        "attention.query.weight": ("attention", (queries, D)),
        "attention.key.weight": ("attention", (keys, D)),
        "attention.value.weight": ("attention", (keys, D)),
        "attention.output.weight": ("attention", (D, queries)),
        "feed_forward_norm.weight": ("norms", (D,)),
    }
    if text.is_moe(layer):
        shapes |= {
            "moe.router.weight": ("router", (text.n_experts, D)),
            "moe.experts.gate_up": ("routed_experts", (text.n_experts, 2 * F, D)),
            "moe.experts.down": ("routed_experts", (text.n_experts, D, F)),
            "moe.shared.gate.weight": ("shared_experts", (F, D)),
            "moe.shared.up.weight": ("shared_experts", (F, D)),
            "moe.shared.down.weight": ("shared_experts", (D, F)),
        }
    else:
        shapes |= {
            "mlp.gate.weight": ("dense", (text.dense_width, D)),
            "mlp.up.weight": ("dense", (text.dense_width, D)),
            "mlp.down.weight": ("dense", (D, text.dense_width)),
        }
    for name, (part, shape) in shapes.items():
        yield Weight(f"layers.{layer}.{name}", part, layer, shape)


def _tower(vision: VisionConfig) -> Iterator[Weight]:
    W = vision.width
    for name, shape in (
        ("class_token", (W,)),
        ("positions", (vision.n_patches + 1, W)),
        ("patch.weight", (W, 3 * vision.patch_size**2)),
    ):
        yield Weight(f"vision.{name}", "vision", None, shape)
    for norm in ("norm_before", "norm_after"):
        yield from _biased(f"vision.{norm}", (W,))
    for layer in range(vision.n_layers):
        where = f"vision.layers.{layer}"
        for norm in ("attention_norm", "mlp_norm"):
            yield from _biased(f"{where}.{norm}", (W,))
        for each in ("query", "key", "value", "output"):
            yield from _biased(f"{where}.attention.{each}", (W, W))
        yield from _biased(f"{where}.mlp.up", (vision.mlp_width, W))
        yield from _biased(f"{where}.mlp.down", (W, vision.mlp_width))
    yield Weight("vision.adapter.up.weight", "adapter", None, (vision.adapter_width, vision.shuffled_width))
    yield Weight("vision.adapter.down.weight", "adapter", None, (vision.output_width, vision.adapter_width))


def _biased(name: str, shape: tuple[int, ...]) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", "vision", None, shape)
    yield Weight(f"{name}.bias", "vision", None, shape[:1])
