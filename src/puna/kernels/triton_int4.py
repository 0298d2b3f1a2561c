"""Products with one matrix in small numbers on a GPU, without ever writing the numbers out: Int4, Int8, Fp8.

In: activations and a weight of `formats`. Out: activations. One row is a sweep over the weight at the speed of memory
(`_one`), up to a few hundred rows go through the matrix units tile by tile (`_many`); above that the arithmetic weighs
more than the bytes, and writing the numbers out once for the library's product is meant to win (`MANY_ROWS`).
Plain twin: `quantized.linear_plain`.
Why Triton, what was chosen and what is unmeasured: docs/decisions/014.
Every speed here is a guess until a GPU has run bench/gpu.py; the tests run the kernels in Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from puna.kernels.formats import GROUP, Int4, Small, dequantize
from puna.kernels.triton_weights import nibbles, operands, row_product, row_tile, stored, tile_product, words

MANY_ROWS = 1024
"""From this many rows on a weight is written out as numbers first. A guess from bytes and operations, unmeasured."""


def linear(x: Tensor, weight: Small) -> Tensor:
    """Returns x @ weight.T for x [T in] (bfloat16 or float32) and weight [out in]: [T out] in the dtype of x.

    Raises ValueError when `in` is not a multiple of 32 columns for Int4, or the weight is not contiguous.
    """
    _check(weight)
    T, n_in = x.shape
    if T >= MANY_ROWS:
        return F.linear(x, written_out(weight, x.dtype))
    kind, codes, scales, n_out, _ = stored(weight)
    x, y = x.contiguous(), x.new_empty(T, n_out)
    if T == 1:
        out, columns, warps = row_tile(kind)
        _one[(triton.cdiv(n_out, out),)](x, words(codes), scales, y, n_out, n_in, kind, out, columns, num_warps=warps)
    elif T > 1:
        rows = 16 if T <= 16 else 64
        tile = 16 if T <= 16 else 64
        grid = (triton.cdiv(n_out, tile), triton.cdiv(T, rows))
        _many[grid](x, codes, scales, y, T, n_out, n_in, kind, operands(x.dtype), rows, tile, 128, num_warps=4)
    return y


def written_out(weight: Small, dtype: torch.dtype) -> Tensor:
    """Returns `dequantize(weight, dtype)`, Int4 in one pass over memory."""
    if not isinstance(weight, Int4):
        return dequantize(weight, dtype)
    _check(weight)
    y = torch.empty((*weight.codes.shape[:-1], 2 * weight.codes.shape[-1]), dtype=dtype, device=weight.codes.device)
    n_groups = weight.scales.numel()
    _write_out[(triton.cdiv(n_groups, 64),)](weight.codes, weight.scales, y, n_groups, 64, num_warps=4)
    return y


def _check(weight: Small) -> None:
    if isinstance(weight, Int4) and 2 * weight.codes.shape[-1] % GROUP:
        raise ValueError(f"Int4 of {2 * weight.codes.shape[-1]} columns: the kernels want a multiple of {GROUP}")


@triton.jit
def _one(x, codes, scales, y, n_out, n_in, KIND: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * OUT + tl.arange(0, OUT)
    seen = row < n_out
    out = row_product(x, codes, scales, row, seen, n_in, KIND, OUT, IN)
    tl.store(y + row, out.to(y.dtype.element_ty), mask=seen)


@triton.jit
def _many(
    x, codes, scales, y, T, n_out, n_in,
    KIND: tl.constexpr, DOT: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.program_id(0).to(tl.int64) * OUT + tl.arange(0, OUT)
    out = tile_product(x, t, t < T, codes, scales, row, row < n_out, n_in, KIND, DOT, ROWS, OUT, IN)
    place = t[:, None] * n_out + row[None, :]
    tl.store(y + place, out.to(y.dtype.element_ty), mask=(t < T)[:, None] & (row < n_out)[None, :])


@triton.jit
def _write_out(codes, scales, y, n_groups, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    place = group[:, None] * 16 + tl.arange(0, 16)[None, :]  # GROUPS 16, of bytes
    inside = (group < n_groups)[:, None] & (place >= 0)
    scale = tl.load(scales + group, mask=group < n_groups, other=0.0).to(tl.float32)[:, None]
    numbers = tl.reshape(nibbles(tl.load(codes + place, mask=inside, other=0)), [GROUPS, 32]) * scale
    column = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(y + column, numbers.to(y.dtype.element_ty), mask=(group < n_groups)[:, None] & (column >= 0))
