"""What a step cannot do without reading: weights, as far as its tokens choose them, and the keys that they look at.

In: a configuration, and bytes of weights by part as they are stored or held. Out: bytes. Floors are made of them, those
of plans (`serve`) and those that measurements are held against (`bench.work`).
"""

from collections.abc import Mapping

from puna.card.memory import position_bytes
from puna.config import TextConfig

PER_TOKEN = ("attention", "router", "shared_experts", "dense", "head")
"""Parts that every token reads whole. The embedding is read one row a token, norms are too small to count."""


def experts_hit(text: TextConfig, n_tokens: int) -> float:
    """Returns how many of a layer's experts are expected to be chosen by tokens that choose evenly."""
    return text.n_experts * (1 - (1 - text.n_active_experts / text.n_experts) ** n_tokens)


def weights_read(text: TextConfig, weights: Mapping[str, int], n_tokens: int, groups: int = 1) -> float:
    """Returns the bytes that the busiest rank reads of its `weights`, by part, in a step of so many tokens.

    Where `groups` of ranks share out the experts, somebody has the one that a single token chose.
    """
    whole = sum(weights.get(part, 0) for part in PER_TOKEN)
    if not text.moe_layers:
        return float(whole)
    hit = max(1.0, experts_hit(text, n_tokens) / groups) / (text.n_experts / groups)
    return whole + weights.get("routed_experts", 0) * hit


def keys_read(text: TextConfig, context: int, element_bytes: int) -> int:
    """Returns the bytes of keys and values that the token at position `context` looks at."""
    looks = (text.chunk_len_of(layer) for layer in range(text.n_layers))
    seen = sum(context if chunk is None else min(context, context % chunk + 1) for chunk in looks)
    return position_bytes(text, element_bytes) * seen
