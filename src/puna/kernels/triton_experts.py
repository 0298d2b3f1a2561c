"""SwiGLU experts on a GPU that read only the chosen experts' weights, without asking the host who was chosen.

In: as `experts.routed_experts`, weights plain or in a format of `formats`. Out: the same sums. Two ways:
a few rows (decoding) each sweep over their own expert's weights, unsorted, so that a step is two launches; many rows
are sorted by expert and go through the matrix units, each tile finding its expert from `ends`. Gate and up are one
pass with silu(gate) * up at its end, so that the 2F wide intermediate is never written.
A score multiplies the products with gate and up, which are linear, instead of their input: one rounding less.
No tensor is read back, so a CUDA graph can hold all of it (torch's `bincount` could not).
Plain twins: `experts.routed_experts`, `quantized.routed_experts_plain`.

For large batches of bfloat16 weights torch's `_grouped_mm` stays the better product (CUTLASS on Hopper), and
`_scaled_grouped_mm` for e4m3 with activations in e4m3 too: `experts` uses the first. Here activations stay bfloat16.
Every speed here is a guess until a GPU has run bench/gpu.py; the tests run the kernels in Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.formats import GROUP, Int4, Small
from puna.kernels.triton_weights import operands, row_product, row_tile, stored, tile_product, words
from puna.shapes import sizes

Weight = Tensor | Small

FEW_ROWS = 8
"""Up to this many routed rows an expert's weights may be read once a row: few share one. A guess, unmeasured."""


def routed_experts(x: Tensor, scores: Tensor, experts: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Returns for each token the sum over its experts of Expert(score * x).

    x [T D] bfloat16 or float32, scores [T k] in the dtype of x, experts int64 [T k], gate_up [E 2F D] (gate rows
    first), down [E D F]. Result [T D] in the dtype of x. An expert that nobody chose is not read.
    """
    T, D = sizes(x, "T D")
    k = experts.shape[1]
    x, flat, factors = x.contiguous(), experts.flatten(), scores.flatten()
    if T * k <= FEW_ROWS:
        hidden = _few_rows(x, factors, flat, gate_up, k, is_gated=True)  # T*k F
        out = _few_rows(hidden, torch.ones_like(factors), flat, down, 1, is_gated=False)  # T*k D
    else:
        order, ends = by_expert(flat, stored(gate_up).codes.shape[0])
        each = torch.arange(T * k, device=x.device)
        hidden = _grouped(x, order // k, factors[order], each, ends, gate_up, is_gated=True)  # T*k F, sorted
        out = _grouped(hidden, each, torch.ones_like(factors), order, ends, down, is_gated=False)  # T*k D, as they came
    return out if k == 1 else out.view(T, k, D).sum(1)  # T D


def grouped_linear(x: Tensor, weight: Weight, ends: Tensor) -> Tensor:
    """Returns x[i] @ weight[g].T for each row i of group g, where group g is the rows ends[g-1] to ends[g].

    x [R in] bfloat16 or float32, weight [E out in], ends int32 [E] ascending, last one R. Result [R out].
    Plain twin: `experts.grouped_linear_plain` on the numbers written out.
    """
    each = torch.arange(len(x), device=x.device)
    return _grouped(x.contiguous(), each, torch.ones_like(x[:, 0]), each, ends, weight, is_gated=False)


def swiglu(x: Tensor, gate_up: Weight) -> Tensor:
    """Returns silu(x @ gate.T) * (x @ up.T), [T F] in the dtype of x, of a shared expert or a dense layer.

    x [T D] bfloat16 or float32; gate_up [2F D], gate rows first: one expert that everybody chose.
    """
    T, _ = sizes(x, "T D")
    x, ones = x.contiguous(), torch.ones_like(x[:, 0])
    if T == 1:
        return _few_rows(x, ones, torch.zeros(1, dtype=torch.int64, device=x.device), gate_up, 1, is_gated=True)
    each, ends = torch.arange(T, device=x.device), torch.full((1,), T, dtype=torch.int32, device=x.device)
    return _grouped(x, each, ones, each, ends, gate_up, is_gated=True)


def by_expert(experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Returns the order int64 [R] that brings an expert's rows together, and ends int32 [E]. Nothing is read back."""
    ordered, order = experts.sort(stable=True)
    ids = torch.arange(n_experts, device=experts.device, dtype=experts.dtype)
    return order, torch.searchsorted(ordered, ids, right=True, out_int32=True)


def _few_rows(x: Tensor, factors: Tensor, experts: Tensor, weight: Weight, k: int, *, is_gated: bool) -> Tensor:
    """Row r of the result is factors[r] times row r // k of x, times the weights of experts[r]."""
    kind, codes, scales, n_rows, n_in = _checked(weight)
    n_out = n_rows // 2 if is_gated else n_rows
    y = x.new_empty(len(experts), n_out)
    out, columns, warps = row_tile(kind)
    grid = (triton.cdiv(n_out, out), len(experts))
    _own_expert[grid](
        x,
        factors,
        experts,
        words(codes),
        scales,
        y,
        k,
        n_rows,
        n_out,
        n_in,
        is_gated,
        kind,
        out,
        columns,
        num_warps=warps,
    )
    return y


def _grouped(
    x: Tensor, x_rows: Tensor, factors: Tensor, y_rows: Tensor, ends: Tensor, weight: Weight, *, is_gated: bool
) -> Tensor:
    """Sorted row r is factors[r] times row x_rows[r] of x, times its group's weights; it becomes row y_rows[r]."""
    kind, codes, scales, n_rows, n_in = _checked(weight)
    n_out, E, R = n_rows // 2 if is_gated else n_rows, len(ends), len(y_rows)
    y = x.new_empty(R, n_out)
    rows = 16 if R <= 16 * E else 64
    tiles = triton.cdiv(R, rows) + E  # as many as any routing can need: some find nothing to do
    _tile[(triton.cdiv(n_out, 64), tiles)](
        x, x_rows, factors, y_rows, ends, codes, scales, y, n_rows, n_out, n_in,
        is_gated, kind, operands(x.dtype), E, triton.next_power_of_2(E), rows, 64, 64, num_warps=4,
    )  # fmt: skip
    return y


def _checked(weight: Weight) -> tuple[str, Tensor, Tensor, int, int]:
    known = stored(weight)
    if isinstance(weight, Int4) and known.n_in % GROUP:
        raise ValueError(f"Int4 of {known.n_in} columns: the kernels want a multiple of {GROUP}")
    return known


@triton.jit
def _own_expert(
    x, factors, experts, codes, scales, y, k, n_rows, n_out, n_in,
    GATED: tl.constexpr, KIND: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(1).to(tl.int64)
    base = tl.load(experts + r) * n_rows
    factor = tl.load(factors + r).to(tl.float32)
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    seen = out < n_out
    mine = x + r // k * n_in
    total = factor * row_product(mine, codes, scales, base + out, seen, n_in, KIND, OUT, IN)
    if GATED:
        up = factor * row_product(mine, codes, scales, base + n_out + out, seen, n_in, KIND, OUT, IN)
        total = _swiglu(total, up, y.dtype.element_ty)
    tl.store(y + r * n_out + out, total.to(y.dtype.element_ty), mask=seen)


@triton.jit
def _tile(
    x, x_rows, factors, y_rows, ends, codes, scales, y, n_rows, n_out, n_in,
    GATED: tl.constexpr, KIND: tl.constexpr, DOT: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    e = tl.arange(0, E_PADDED)
    end = tl.load(ends + e, mask=e < E, other=0)
    begin = tl.load(ends + e - 1, mask=(e > 0) & (e < E), other=0)
    tiles = (end - begin + ROWS - 1) // ROWS  # E, of each expert
    upto = tl.cumsum(tiles, 0)
    tile = tl.program_id(1)
    expert = tl.sum((upto <= tile).to(tl.int32), 0)  # those whose tiles all come before this one
    if expert < E:
        mine = e == expert
        nth = tile - tl.sum(tl.where(mine, upto - tiles, 0), 0)
        r = tl.sum(tl.where(mine, begin, 0), 0) + nth * ROWS + tl.arange(0, ROWS)
        valid = r < tl.sum(tl.where(mine, end, 0), 0)
        x_row = tl.load(x_rows + r, mask=valid, other=0)
        y_row = tl.load(y_rows + r, mask=valid, other=0)
        factor = tl.load(factors + r, mask=valid, other=0.0).to(tl.float32)[:, None]
        out = tl.program_id(0) * OUT + tl.arange(0, OUT)
        seen = out < n_out
        row = expert.to(tl.int64) * n_rows + out
        total = factor * tile_product(x, x_row, valid, codes, scales, row, seen, n_in, KIND, DOT, ROWS, OUT, IN)
        if GATED:
            row += n_out
            up = factor * tile_product(x, x_row, valid, codes, scales, row, seen, n_in, KIND, DOT, ROWS, OUT, IN)
            total = _swiglu(total, up, y.dtype.element_ty)
        place = y_row[:, None] * n_out + out[None, :]
        tl.store(y + place, total.to(y.dtype.element_ty), mask=valid[:, None] & seen[None, :])


@triton.jit
def _swiglu(gate, up, dtype: tl.constexpr):
    """Returns silu(gate) * up in float32, both and the silu rounded to `dtype` first, as separate operations do."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up
