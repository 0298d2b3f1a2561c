"""What reading and writing tokens costs at least: bytes that must come from memory, multiplications that must be done.

In: a configuration, the bytes that its weights take as they are stored, what memory and arithmetic reach. Out: floors
in tokens a second. The count is for text: the vision tower runs once a tile, not once a token.
A floor knows no sampler, no attention arithmetic and no norms: nothing can be much faster, much can be slower.
Not here: what is read of weights and keys (`plan.floor`), how fast anything is (`machine`, `measure`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.model.count import count_parameters, part_of
from puna.plan.floor import PER_TOKEN, keys_read, weights_read


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
    return sum(count.parts()[part] for part in PER_TOKEN) + count.active_experts


def prefill_flops(config: LlamaConfig) -> int:
    """Returns the operations of one token of a prompt, two a parameter: without the head, which only the last needs."""
    return 2 * (read_parameters(config) - count_parameters(config).head)


def prefill_floor(config: LlamaConfig, weights: Mapping[str, int], limits: Limits, prompt_len: int) -> float:
    """Returns the most tokens a second at which a prompt can be read."""
    seconds = max(
        weights_read(config.text, weights, prompt_len) / limits.read_bytes,
        prompt_len * prefill_flops(config) / limits.flops,
    )
    return prompt_len / seconds


def decode_floor(
    config: LlamaConfig, weights: Mapping[str, int], limits: Limits, batch: int, context: int, element_bytes: int
) -> float:
    """Returns the most tokens a second that `batch` sequences can get together at this context."""
    n_bytes = weights_read(config.text, weights, batch) + batch * keys_read(config.text, context, element_bytes)
    n_flops = batch * 2 * read_parameters(config)
    return batch / max(n_bytes / limits.read_bytes, n_flops / limits.flops)
