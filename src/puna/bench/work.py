"""What reading and writing tokens costs at least: bytes that must come from memory, multiplications that must be done.

In: a configuration, the bytes that its weights take as they are stored, what memory and arithmetic reach. Out: floors
in tokens a second. The count is for text: the vision tower runs once a tile, not once a token.
A floor knows no sampler, no attention arithmetic and no norms: nothing can be much faster, much can be slower.
Not here: how fast anything is (`machine`, `measure`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from puna.config import LlamaConfig, TextConfig
from puna.model.count import count_parameters, part_of

_PER_TOKEN = ("attention", "router", "shared_experts", "dense", "head")
"""Parts that every token reads whole. The embedding is read one row a token, norms are too small to count."""


class Limits(NamedTuple):
    """What this machine reaches: bytes read from memory and multiply-adds (as two operations), each in a second."""

    read_bytes: float
    flops: float


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Returns the bytes of a model's weights by part, as they lie in memory: parameters, buffers, packed weights."""
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        stored = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        stored += [(name, value.data) for name, value in vars(module).items() if _is_packed(value)]
        for name, tensor in stored:
            part = part_of(f"{prefix}.{name}")
            found[part] = found.get(part, 0) + tensor.nbytes
    return found


def _is_packed(value: object) -> bool:
    """Says whether a module's attribute is a weight in a layout of its own, which is kept as one tensor `data`."""
    return not isinstance(value, Tensor) and isinstance(getattr(value, "data", None), Tensor)


def read_parameters(config: LlamaConfig) -> int:
    """Returns how many parameters one token reads: the decoder with its head, of the routed experts those chosen."""
    count = count_parameters(config)
    return sum(count.parts()[part] for part in _PER_TOKEN) + count.active_experts


def prefill_flops(config: LlamaConfig) -> int:
    """Returns the operations of one token of a prompt, two a parameter: without the head, which only the last needs."""
    return 2 * (read_parameters(config) - count_parameters(config).head)


def experts_hit(config: TextConfig, n_tokens: int) -> float:
    """Returns how many of a layer's experts are expected to be chosen by `n_tokens` tokens that choose evenly."""
    return config.n_experts * (1 - (1 - config.n_active_experts / config.n_experts) ** n_tokens)


def read_bytes(config: LlamaConfig, weights: Mapping[str, int], n_tokens: int) -> float:
    """Returns the bytes of weights that a step over `n_tokens` tokens reads, of `weights` as `weight_bytes` gives."""
    text = config.text
    routed = weights.get("routed_experts", 0)
    hit = experts_hit(text, n_tokens) / text.n_experts if text.moe_layers else 0.0
    return sum(weights.get(part, 0) for part in _PER_TOKEN) + routed * hit


def cache_bytes(config: TextConfig, context: int, element_bytes: int) -> int:
    """Returns the bytes of keys and values that the token at position `context` looks at."""
    looks = (config.chunk_len_of(layer) for layer in range(config.n_layers))
    seen = sum(context if chunk is None else min(context, context % chunk + 1) for chunk in looks)
    return 2 * config.n_kv_heads * config.head_dim * element_bytes * seen


def prefill_floor(config: LlamaConfig, weights: Mapping[str, int], limits: Limits, prompt_len: int) -> float:
    """Returns the most tokens a second at which a prompt can be read."""
    seconds = max(
        read_bytes(config, weights, prompt_len) / limits.read_bytes,
        prompt_len * prefill_flops(config) / limits.flops,
    )
    return prompt_len / seconds


def decode_floor(
    config: LlamaConfig, weights: Mapping[str, int], limits: Limits, batch: int, context: int, element_bytes: int
) -> float:
    """Returns the most tokens a second that `batch` sequences can get together at this context."""
    n_bytes = read_bytes(config, weights, batch) + batch * cache_bytes(config.text, context, element_bytes)
    n_flops = batch * 2 * read_parameters(config)
    return batch / max(n_bytes / limits.read_bytes, n_flops / limits.flops)
