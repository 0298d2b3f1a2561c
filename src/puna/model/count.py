"""How many parameters a configuration has, in total, per token and by part, counted on the model itself.

In: a configuration. Out: counts, from a model built on the meta device, which takes no memory and no weights.
Not here: bytes, which depend on how weights are stored.
"""

import math
from dataclasses import asdict, dataclass

import torch

from puna.config import LlamaConfig
from puna.model.transformer import Llama

# The first pattern that a parameter's name contains says its part, so the vision tower comes before its own attention.
_PARTS = (
    ("vision.adapter.", "adapter"),
    ("vision.", "vision"),
    ("projector.", "projector"),
    ("embedding.", "embedding"),
    ("head.", "head"),
    ("norm.", "norms"),
    (".attention.", "attention"),
    (".moe.router.", "router"),
    (".moe.experts.", "routed_experts"),
    (".moe.shared.", "shared_experts"),
    (".mlp.", "dense"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters by part. `active_experts` is what one token uses of `routed_experts`; it is no part of its own."""

    embedding: int = 0
    attention: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    dense: int = 0
    norms: int = 0
    head: int = 0
    vision: int = 0
    adapter: int = 0
    projector: int = 0
    active_experts: int = 0

    def parts(self) -> dict[str, int]:
        """Returns the parts by name; they add up to `total`."""
        return {name: n for name, n in asdict(self).items() if name != "active_experts"}

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def activated(self) -> int:
        """What a text token meets: the decoder with embedding and head, of the routed experts only those chosen.

        The vision tower, adapter and projector are left out: they run once per tile, not per token. The embedding
        counts whole, though a token reads one row of it. This is the reading that gives the 17 billion of the model
        card (Scout 17.17, Maverick 17.18).
        """
        seen = self.vision + self.adapter + self.projector
        return self.total - seen - self.routed_experts + self.active_experts


def count_parameters(config: LlamaConfig) -> ParameterCount:
    """Returns the parameter counts of a model with this configuration."""
    counts = {part: 0 for _, part in _PARTS}
    for name, shape in shapes(config).items():
        counts[part_of(name)] += math.prod(shape)
    text = config.text
    active = counts["routed_experts"] * text.n_active_experts // text.n_experts if text.moe_layers else 0
    return ParameterCount(**counts, active_experts=active)


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters, by name."""
    with torch.device("meta"):
        model = Llama(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def part_of(name: str) -> str:
    """Returns the part that a parameter belongs to, by its name in the model."""
    for pattern, part in _PARTS:
        if pattern in name:
            return part
    raise AssertionError(f"parameter {name} belongs to no part")
