"""Weights in small numbers: three formats, how to get numbers back, and how many bytes they take.

In and out: matrices [out in] or stacks of experts [E out in]. Every format is symmetric: a code times its scale.
Not here: how codes and scales are chosen (`quant`) and products with them (`quantized`, `native`).
Int4 is compressed-tensors' "pack-quantized" with four bits in other words: its codes viewed as int32 are that layout.
Source: compressed-tensors `compressors/pack_quantized` (nibble order, offset 8); OCP "8-bit floating point" (e4m3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32
"""Columns that share a scale in Int4: 4.5 bits a weight with bfloat16 scales, as llama.cpp's Q4_0."""
OFFSET = 8
"""What is added to a value of -8..7 so that it is a nibble."""


class Int4(NamedTuple):
    """codes uint8 [.. out in/2]: byte b holds column 2b in its low and 2b+1 in its high nibble. scales bfloat16
    [.. out in/32], of either sign: the sign decides which end of the range -8 reaches. Value (nibble - 8) * scale."""

    codes: Tensor
    scales: Tensor


class Int8(NamedTuple):
    """codes int8 [.. out in], scales float32 [.. out 1]. Value code * scale."""

    codes: Tensor
    scales: Tensor


class Fp8(NamedTuple):
    """codes float8_e4m3fn [.. out in], scales float32 [.. out 1]. Value code * scale."""

    codes: Tensor
    scales: Tensor


Small = Int4 | Int8 | Fp8


def shape(weight: Tensor | Small) -> tuple[int, ...]:
    """Returns the shape [.. out in] of the numbers that are meant, however they are stored."""
    if isinstance(weight, Tensor):
        return tuple(weight.shape)
    rows, width = weight.codes.shape[:-1], weight.codes.shape[-1]
    return (*rows, 2 * width if isinstance(weight, Int4) else width)


def n_bytes(weight: Tensor | Small) -> int:
    """Returns the bytes that a weight takes in memory, scales included."""
    return weight.nbytes if isinstance(weight, Tensor) else weight.codes.nbytes + weight.scales.nbytes


def expert_of(weight: Tensor | Small, expert: int) -> Tensor | Small:
    """Returns one expert [out in] of a stack [E out in], as views."""
    if isinstance(weight, Tensor):
        return weight[expert]
    return type(weight)(weight.codes[expert], weight.scales[expert])


def stack_of_one(weight: Tensor | Small) -> Tensor | Small:
    """Returns a matrix [out in] as a stack of one expert [1 out in], as views."""
    return weight[None] if isinstance(weight, Tensor) else type(weight)(weight.codes[None], weight.scales[None])


def stack(experts: Sequence[Tensor | Small]) -> Tensor | Small:
    """Returns matrices [out in], all in one form, as a stack [E out in]."""
    first = experts[0]
    if isinstance(first, Tensor):
        return torch.stack([expert for expert in experts if isinstance(expert, Tensor)])
    return type(first)(*(torch.stack(part) for part in zip(*experts, strict=True)))


def dequantize(weight: Tensor | Small, dtype: torch.dtype) -> Tensor:
    """Returns the numbers [.. out in]. The product of code and scale is rounded once, to `dtype`."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    # A code has at most 8 bits, so that bfloat16 holds it exactly; float16 could not hold the scales.
    wide = dtype if isinstance(weight, Int4) and dtype == torch.bfloat16 else torch.float32
    if not isinstance(weight, Int4):
        return (weight.codes.to(wide) * weight.scales).to(dtype)
    groups = values(weight.codes).to(wide).view(*weight.scales.shape, GROUP)  # .. out in/32 32
    return groups.mul_(weight.scales.to(wide).unsqueeze(-1)).flatten(-2).to(dtype)


def pack(values: Tensor) -> Tensor:
    """Returns Int4's codes uint8 [.. in/2] of whole numbers -8..7 [.. in], `in` even, of any dtype."""
    nibbles = (values + OFFSET).to(torch.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def values(codes: Tensor) -> Tensor:
    """Returns the whole numbers -8..7, int8 [.. in], of Int4's codes [.. in/2]: `pack` undone."""
    low_high = torch.stack([codes & 15, codes >> 4], dim=-1)  # .. in/2 2
    return low_high.flatten(-2).to(torch.int8) - OFFSET
