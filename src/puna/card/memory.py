"""How many bytes a model takes: weights in any numbers, keys and values by kind of layer.

In: a configuration, and how its numbers are stored. Out: bytes by part, exact. Nothing is built and no memory is asked
for, so that a model of any size can be planned anywhere. Gigabytes on cards of hardware are 10^9 bytes here, GiB 2^30.
Not here: whether a machine has that much, what a step needs besides, and how long anything takes (`plan`).

Source: stored formats, `kernels.formats` and llama-models `quantization/loader.py` and `scripts/quantize.py` (Meta's
two recipes: int4 in groups of 128 with float32 scales on all experts; fp8 with a scale a row on routed experts, without
the first and the last layer); the two kinds of layers, docs/decisions/008.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from puna.card.params import PARTS, Part, Weight, weights
from puna.config import LlamaConfig, TextConfig

Kind = Literal["global", "chunked"]
KINDS: tuple[Kind, ...] = ("global", "chunked")

BLOCK_LEN = 32
"""Positions whose keys and values are given out together, as in `engine.blocks`."""

LOGIT_BYTES = 4  # logits leave the head in float32
SCALE_BYTES = 4  # float32, beside each key and each value in one byte


class Numbers(NamedTuple):
    """How the numbers of a matrix are stored: `bits` each, and a scale for every `group` columns, or for a row (0)."""

    bits: int
    group: int = 0
    scale_bytes: int = 0
    is_float: bool = False


INT4 = Numbers(bits=4, group=32, scale_bytes=2)
INT8 = Numbers(bits=8, scale_bytes=4)
FP8 = Numbers(bits=8, scale_bytes=4, is_float=True)
META_INT4 = Numbers(bits=4, group=128, scale_bytes=4)

EXPERTS: frozenset[Part] = frozenset({"routed_experts", "shared_experts"})
DECODER: frozenset[Part] = EXPERTS | {"attention", "dense", "head"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Which parts are stored in which small numbers; whatever is not named stays a float, as do vectors.

    `keeps_ends`: the first and the last layer of the decoder stay floats too; `kept`: these weights do, by name.
    """

    small: Mapping[Part, Numbers]
    keeps_ends: bool = False
    kept: frozenset[str] = frozenset()


SCHEMES: Mapping[str, Scheme] = {
    "none": Scheme(small={}),
    "int4": Scheme(small=dict.fromkeys(DECODER, INT4) | {"head": INT8}),
    "int8": Scheme(small=dict.fromkeys(DECODER, INT8)),
    "fp8": Scheme(small=dict.fromkeys(DECODER, FP8)),
    "int4-experts": Scheme(small=dict.fromkeys(EXPERTS, META_INT4)),
    "fp8-experts": Scheme(small={"routed_experts": FP8}, keeps_ends=True),
}
"""How puna makes a model small while loading it (`int4`, `int8`, `fp8`: the whole decoder), and Meta's two recipes."""


def weight_bytes(weight: Weight, scheme: Scheme, float_bytes: int, n_layers: int) -> int:
    """Returns the bytes of one parameter, scales included. `float_bytes`: of a number that is not made small."""
    kept = weight.name in scheme.kept or (scheme.keeps_ends and weight.layer in (0, n_layers - 1))
    numbers = scheme.small.get(weight.part)
    if numbers is None or kept or len(weight.shape) < 2:
        return weight.size * float_bytes
    *rows, columns = weight.shape
    scales = math.ceil(columns / numbers.group) if numbers.group else 1
    return math.prod(rows) * (columns * numbers.bits // 8 + scales * numbers.scale_bytes)


def by_part(config: LlamaConfig, scheme: Scheme, float_bytes: int = 2) -> dict[str, int]:
    """Returns the bytes of a whole model's weights by part, in the order of `PARTS`."""
    found: dict[str, int] = dict.fromkeys(PARTS, 0)
    for weight in weights(config):
        found[weight.part] += weight_bytes(weight, scheme, float_bytes, config.text.n_layers)
    return found


def model_bytes(config: LlamaConfig, scheme: Scheme, float_bytes: int = 2) -> int:
    """Returns the bytes of a whole model's weights."""
    return sum(by_part(config, scheme, float_bytes).values())


# Keys and values ------------------------------------------------------------------------------------------------------


def kind_of(text: TextConfig, layer: int) -> Kind:
    """Returns whether a layer remembers all positions or those of a chunk."""
    return "global" if text.chunk_len_of(layer) is None else "chunked"


def layers_of(text: TextConfig, kind: Kind) -> int:
    """Returns how many layers are of a kind."""
    return sum(kind_of(text, layer) == kind for layer in range(text.n_layers))


def position_bytes(text: TextConfig, element_bytes: int = 2) -> int:
    """Returns the bytes of one position's keys and values in one layer; one-byte numbers have a scale for each head."""
    scale = SCALE_BYTES if element_bytes == 1 else 0
    return 2 * text.n_kv_heads * (text.head_dim * element_bytes + scale)


def block_len(text: TextConfig) -> int:
    """Returns the positions of a block: 32, or as many as divide a chunk."""
    return BLOCK_LEN if text.chunk_len is None or not text.rope_layers else math.gcd(text.chunk_len, BLOCK_LEN)


def kv_bytes(text: TextConfig, length: int, element_bytes: int = 2) -> dict[Kind, int]:
    """Returns the most bytes that one sequence holds by kind of layer on its way to `length` positions, whole blocks.

    Global layers keep all positions, chunked ones one chunk: for Scout 49,152 bytes a token and at most 1.21 GB more.
    """
    each = block_len(text)

    def of(kind: Kind, positions: int) -> int:
        return layers_of(text, kind) * math.ceil(positions / each) * each * position_bytes(text, element_bytes)

    chunk = 0 if text.chunk_len is None else min(length, text.chunk_len)
    return {"global": of("global", length), "chunked": of("chunked", chunk)}


def sequence_bytes(text: TextConfig, length: int, element_bytes: int = 2) -> int:
    """Returns the most bytes that one sequence holds on its way to `length` positions."""
    return sum(kv_bytes(text, length, element_bytes).values())


def uniform_bytes(text: TextConfig, length: int, element_bytes: int = 2) -> int:
    """Returns what a sequence takes where every layer keeps every position, as engines do that know no chunks."""
    return text.n_layers * length * position_bytes(text, element_bytes)


def longest(text: TextConfig, n_bytes: int, element_bytes: int = 2) -> int:
    """Returns how many positions one sequence can have in so many bytes: whole blocks, at most the model's context."""
    each = block_len(text)
    low, high = 0, text.context_len // each
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(text, middle * each, element_bytes) <= n_bytes:
            low = middle
        else:
            high = middle - 1
    return low * each
