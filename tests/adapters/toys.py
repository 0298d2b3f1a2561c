"""Adapters for small models, that change something."""

import torch

from puna.adapters.spec import Spec, begin
from puna.config import LlamaConfig
from puna.kernels.low_rank import Factors

EVERYTHING = frozenset({"attention", "dense", "shared", "experts", "router", "head"})


def adapter_for(config: LlamaConfig, spec: Spec, seed: int = 1) -> dict[str, Factors]:
    """Returns an adapter whose b is random too, as large as it may be after some training."""
    generator = torch.Generator().manual_seed(seed)
    fresh = begin(config, spec, generator)
    return {
        name: factors._replace(b=torch.randn(factors.b.shape, generator=generator) * 0.1)
        for name, factors in fresh.items()
    }
