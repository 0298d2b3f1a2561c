"""Products with rows of stored weights inside Triton kernels, whatever the weights' format: the inner loops of all.

A stored weight is a pointer to codes, a pointer to scales and its kind: "plain" (no scales), "int4" (two columns a
byte, a scale for every 32) or "row" (int8 or e4m3, a scale a row). A stack of experts is one long matrix: the caller
says which rows it wants, in 64 bits, since Maverick's stacks pass 2**31 numbers.

A nibble becomes a float by two cheap operations instead of a conversion: 0x4B000000 | nibble are the bits of
2**23 + nibble. Its two columns are neighbours in one thread's registers, so that joining them moves nothing.
Not here: which rows (`triton_int4`, `triton_experts`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.formats import GROUP, Int4, Small, shape

GROUP_LEN = tl.constexpr(GROUP)


class Stored(NamedTuple):
    """A weight as kernels take it: its kind, and codes and scales (codes again where there are none)."""

    kind: str
    codes: Tensor
    scales: Tensor
    n_out: int
    n_in: int


def stored(weight: Tensor | Small) -> Stored:
    """Returns what a kernel needs of a weight [out in] or [E out in]. Raises ValueError where it is not contiguous."""
    *_, n_out, n_in = shape(weight)
    if isinstance(weight, Tensor):
        kind, codes, scales = "plain", weight, weight
    else:
        kind, codes, scales = "int4" if isinstance(weight, Int4) else "row", weight.codes, weight.scales
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("a weight's rows must lie one after the other: call contiguous() on codes and scales")
    return Stored(kind, codes, scales, n_out, n_in)


def operands(dtype: torch.dtype) -> tl.dtype:
    """Returns what the factors of a matrix product become: `dtype`, but float32 in Triton's interpreter.

    The interpreter keeps bfloat16 as its bits and multiplies those.
    """
    if dtype == torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32
    return tl.bfloat16


def row_tile(kind: str) -> tuple[int, int, int]:
    """Returns how many weight rows and columns one program of `row_product` takes at a time, and its warps.

    A warp of its own for int4 needs no barrier to spread x over its threads. Read off the machine code, unmeasured.
    """
    return (4, 1024, 1) if kind == "int4" else (8, 1024, 4)


def words(codes: Tensor) -> Tensor:
    """Returns Int4's codes as int32, eight numbers each, as `row_product` wants them; others as they are."""
    return codes.view(torch.int32) if codes.dtype == torch.uint8 else codes


@triton.jit
def nibbles(codes):
    """Returns the numbers -8..7 of bytes [.. n] as float32 [.. n 2]."""
    low = (codes & 15).to(tl.int32) | 0x4B000000
    high = (codes >> 4).to(tl.int32) | 0x4B000000
    return tl.join(low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)) - 8388616.0


@triton.jit
def eighths(x, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Returns the columns 0, 1, .. 7 of every 8 of x [ROWS 8*WORDS], each [ROWS WORDS]."""
    even, odd = tl.split(tl.reshape(x, [ROWS, WORDS, 2, 2, 2]))
    even_0, even_1 = tl.split(even)
    odd_0, odd_1 = tl.split(odd)
    x0, x4 = tl.split(even_0)
    x2, x6 = tl.split(even_1)
    x1, x5 = tl.split(odd_0)
    x3, x7 = tl.split(odd_1)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def raised(words, NIBBLE: tl.constexpr):
    """Returns the numbers -8..7 in one nibble of each word, times 16**NIBBLE: it stays where it is among the bits."""
    bits = (words & (15 << (4 * NIBBLE))) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (8388608.0 + 8 * 16**NIBBLE)


@triton.jit
def row_product(x, codes, scales, row, seen, n_in, KIND: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
    """Returns [OUT] float32: the one row at `x` times the weight rows `row` [OUT] where `seen`.

    One row has no use for matrix units: every weight is read once, multiplied and summed in float32. Codes of int4 are
    int32 here. Each of its weights must cost few operations, or arithmetic is slower than memory: three are a mask, a
    subtraction and a multiply-add. So x, of which there is little, is lowered by what `raised` leaves too high.
    """
    if KIND == "int4":
        GROUPS: tl.constexpr = IN // GROUP_LEN
        WORDS: tl.constexpr = GROUP_LEN // 8
        n_groups = n_in // GROUP_LEN
        each = tl.arange(0, GROUP_LEN)
        word = tl.arange(0, WORDS)
        lower = ((127 - 4 * (each & 3)) << 23).to(tl.float32, bitcast=True)  # 16**-(column % 4), by its exponent
        sums = tl.zeros([OUT, GROUPS], tl.float32)
        for at in range(0, n_groups, GROUPS):
            group = at + tl.arange(0, GROUPS)
            inside = group < n_groups
            number = tl.load(x + group[:, None] * GROUP_LEN + each[None, :], mask=inside[:, None], other=0.0)
            number = number.to(tl.float32) * lower[None, :]  # GROUPS 32
            whole = seen[:, None] & inside[None, :]
            scale = row[:, None] * n_groups + group[None, :]  # OUT GROUPS
            place = scale[:, :, None] * WORDS + word[None, None, :]  # OUT GROUPS 4
            low = tl.load(codes + place, mask=whole[:, :, None], other=0)
            high = low >> 16
            x0, x1, x2, x3, x4, x5, x6, x7 = eighths(number, GROUPS, WORDS)
            inner = raised(low, 0) * x0[None, :, :]
            inner += raised(low, 1) * x1[None, :, :]
            inner += raised(low, 2) * x2[None, :, :]
            inner += raised(low, 3) * x3[None, :, :]
            inner += raised(high, 0) * x4[None, :, :]
            inner += raised(high, 1) * x5[None, :, :]
            inner += raised(high, 2) * x6[None, :, :]
            inner += raised(high, 3) * x7[None, :, :]
            inner = tl.sum(inner, axis=2)  # OUT GROUPS
            sums += inner * tl.load(scales + scale, mask=whole, other=0.0).to(tl.float32)
        return tl.sum(sums, axis=1)
    else:
        sums = tl.zeros([OUT, IN], tl.float32)
        for at in range(0, n_in, IN):
            column = at + tl.arange(0, IN)
            number = tl.load(x + column, mask=column < n_in, other=0.0).to(tl.float32)
            place = row[:, None] * n_in + column[None, :]  # OUT IN
            w = tl.load(codes + place, mask=seen[:, None] & (column < n_in)[None, :], other=0.0)
            sums += w.to(tl.float32) * number[None, :]
        total = tl.sum(sums, axis=1)
        if KIND == "row":
            total *= tl.load(scales + row, mask=seen, other=0.0)
        return total


@triton.jit
def tile_product(
    x, x_row, x_seen, codes, scales, row, seen, n_in,
    KIND: tl.constexpr, DOT: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """Returns [ROWS OUT] float32: rows `x_row` [ROWS] of x where `x_seen`, times weight rows `row` [OUT] where `seen`.

    Int4 numbers are rounded to the dtype of x before the product, like `dequantize`; a row's scale is applied after.
    """
    out = tl.zeros([ROWS, OUT], tl.float32)
    for at in range(0, n_in, IN):
        column = at + tl.arange(0, IN)
        x_whole = x_seen[:, None] & (column < n_in)[None, :]
        a = tl.load(x + x_row[:, None] * n_in + column[None, :], mask=x_whole, other=0.0)  # ROWS IN
        if KIND == "int4":
            GROUPS: tl.constexpr = IN // GROUP_LEN
            n_groups = n_in // GROUP_LEN
            group = at // GROUP_LEN + tl.arange(0, GROUPS)
            byte = tl.arange(0, GROUP_LEN // 2)
            whole = seen[:, None] & (group < n_groups)[None, :]
            scale = row[:, None] * n_groups + group[None, :]  # OUT GROUPS
            place = scale[:, :, None] * (GROUP_LEN // 2) + byte[None, None, :]  # OUT GROUPS 16
            w = nibbles(tl.load(codes + place, mask=whole[:, :, None], other=0))
            w = tl.reshape(w, [OUT, GROUPS, GROUP_LEN])
            w *= tl.load(scales + scale, mask=whole, other=0.0).to(tl.float32)[:, :, None]
            w = tl.reshape(w.to(a.dtype).to(DOT), [OUT, IN])
        else:
            whole = seen[:, None] & (column < n_in)[None, :]
            w = tl.load(codes + row[:, None] * n_in + column[None, :], mask=whole, other=0.0)
            w = w.to(tl.float32).to(DOT)
        out = tl.dot(a.to(DOT), tl.trans(w), out, input_precision="ieee")
    if KIND == "row":
        out *= tl.load(scales + row, mask=seen, other=0.0)[None, :]
    return out
