"""A dense guard out of a mixture of experts, as Llama Guard 4 was made out of Scout: the start of its fine-tuning.

In: a checkpoint all of whose layers are routed. Out: a checkpoint without experts and router, whose feed-forward of
each layer is the shared expert. Attention, chunks and vision stay as they are: the published guard also turns every
layer to RoPE without chunks, which only training makes good. Nothing judges yet: such a model must be tuned first.

Source: model card of Llama Guard 4 (pruned to the shared expert, fine-tuned without further pre-training).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.weights import checkpoint


def prune(source: Path, destination: Path, progress: Callable[[int, int], None] | None = None) -> LlamaConfig:
    """Writes the guard of checkpoint `source` to the new directory `destination`, tokenizer included.

    Only one parameter is in memory at a time. Returns its configuration. Raises ConfigError where a layer has no shared
    expert, and ConfigError or WeightsError for a broken source or a destination that is not empty.
    """
    config = without_experts(checkpoint.open_config(source))
    checkpoint.derive(source, destination, config, origin, progress)
    return config


def without_experts(config: LlamaConfig) -> LlamaConfig:
    """Returns the configuration of the guard. Raises ConfigError unless every layer is routed."""
    text = config.text
    if dense := sorted(set(range(text.n_layers)) - text.moe_layers):
        raise ConfigError(
            f"moe_layers: layer {dense[0]} is dense already, and wider than a shared expert; give a checkpoint such as "
            "Scout, all of whose layers are routed"
        )
    pruned = replace(text, moe_layers=frozenset(), n_experts=0, n_active_experts=0, dense_width=text.expert_width)
    return replace(config, text=pruned)


def origin(name: str) -> str:
    """Returns what a parameter of the guard is called in the model that it was made of."""
    return name.replace(".mlp.", ".moe.shared.") if name.startswith("layers.") else name
