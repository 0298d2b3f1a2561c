"""Attention over keys and values in blocks on a GPU, and the way of new ones into their blocks.

In: queries of a flat batch, pools of blocks, and for each row which blocks and slots it may see (`Places`). Out: mixed
values. Decoding rows split their context over many programs whose parts are combined (a single query over 128k keys
would keep one multiprocessor busy and 131 idle); rows of prompts go in tiles of neighbours. The query heads of one key
head are rows of one matrix product, so that keys are read once. A chunked layer is no special case: its table begins
at the chunk, and `first` says where the row's own chunk begins in it.

Keys and values may be bfloat16, float32, or int8 and e4m3 with a scale for each slot and head: scales multiply scores
and probabilities, never keys. Plain twins: `attend_plain`, `attention.write_paged`.
Not here: which blocks (`engine/blocks`), RoPE, norm and temperature (`triton_decoder`).
Every speed here is a guess until a GPU has run bench/gpu.py; the tests run the kernels in Triton's interpreter.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.attention import Stored
from puna.kernels.triton_weights import operands
from puna.shapes import sizes

SLOTS = 64
"""Keys that a program looks at together. Unmeasured, as are all sizes of tiles here."""
TILE = 128
"""Rows of a prompt's tile: as many tokens as fit, times the query heads of one key head."""
PART_SLOTS = 256
"""A decoding row's context is split into parts of at least about this many keys."""
MAX_PARTS = 64
ENOUGH_PROGRAMS = 512
"""Programs that keep a GPU of 132 multiprocessors busy."""


class Places(NamedTuple):
    """For each row of a flat batch, where the keys lie that it sees and where its own go. All int32.

    Slots are counted from the beginning of the row's table: slot s lies in block table[start + s // block_len].
    A row that sees nothing (first = last) gets zeros.
    """

    table: Tensor  # [n] block ids, the tables of all sequences one after the other
    start: Tensor  # [T] where in `table` the row's begins
    first: Tensor  # [T] first slot that the row sees
    last: Tensor  # [T] one past the last slot that it sees, its own included
    own: Tensor  # [T] block id * block_len + offset of the row's own key and value, or -1 not to store them


def store(k: Tensor, v: Tensor, pool: Stored, own: Tensor) -> None:
    """Writes keys and values [T K H] of new tokens into their places `own` int32 [T]; -1 is left out.

    Small formats take the largest magnitude of a head's key as the end of their range, rounding to nearest even.
    """
    T, K, H = sizes(k, "T K H")
    block_len = pool.keys.shape[2]
    for x, codes, scales in ((k, pool.keys, pool.key_scales), (v, pool.values, pool.value_scales)):
        grid, kind = (T, K), kind_of(codes)
        if T:
            _store[grid](
                x, own, codes, codes if scales is None else scales, x.stride(0), x.stride(1),
                K, H, block_len, kind, triton.next_power_of_2(H), num_warps=1,
            )  # fmt: skip


def attend_decode(q: Tensor, pool: Stored, places: Places, rows: Tensor, out: Tensor, *, longest: int) -> None:
    """Writes the attention of the rows `rows` int32 [n] of q [T N H] to the same rows of `out` [T N H].

    `longest` bounds how many keys a row sees; it decides into how many parts a context is split, not what comes out.
    """
    _, N, H = sizes(q, "T N H")
    n, K, q = len(rows), pool.keys.shape[1], q.contiguous()
    if n == 0:
        return
    n_parts = parts_for(n * K, longest)
    width = max(16, triton.next_power_of_2(H))
    mixed = torch.empty(n, N, n_parts, H, dtype=torch.float32, device=q.device)
    mass = torch.empty(n, N, n_parts, dtype=torch.float32, device=q.device)
    _part[(n, K, n_parts)](
        q, *pointers(pool), *places[:4], rows, mixed, mass, H**-0.5 * math.log2(math.e), n_parts,
        N, K, H, pool.keys.shape[2], pool.key_scales is not None, operands(q.dtype),
        max(16, triton.next_power_of_2(N // K)), width, SLOTS, num_warps=4,
    )  # fmt: skip
    _combine[(n, N)](mixed, mass, rows, out, n_parts, N, H, triton.next_power_of_2(n_parts), width, num_warps=4)


def attend_prefill(q: Tensor, pool: Stored, places: Places, tiles: Tensor, out: Tensor) -> None:
    """Writes the attention of the rows in `tiles` to the same rows of `out` [T N H].

    `tiles` int32 [n 2]: first row and number of rows, neighbours of one sequence, at most `tile_len(q, pool)` of them.
    """
    _, N, H = sizes(q, "T N H")
    n, K, q = len(tiles), pool.keys.shape[1], q.contiguous()
    if n:
        _rows_of_tile[(n, K)](
            q, *pointers(pool), *places[:4], tiles, out, H**-0.5 * math.log2(math.e),
            N, K, H, pool.keys.shape[2], pool.key_scales is not None, operands(q.dtype),
            TILE, max(16, triton.next_power_of_2(H)), SLOTS, num_warps=8,
        )  # fmt: skip


def tile_len(n_heads: int, n_kv_heads: int) -> int:
    """Returns how many tokens a tile of `attend_prefill` may hold."""
    return TILE // (n_heads // n_kv_heads)


def parts_for(n_programs: int, longest: int) -> int:
    """Returns into how many parts contexts are split: enough programs to fill a GPU, none with few keys."""
    wanted = -(-ENOUGH_PROGRAMS // n_programs)
    return max(1, min(wanted, -(-longest // PART_SLOTS), MAX_PARTS))


def attend_plain(q: Tensor, pool: Stored, places: Places) -> Tensor:
    """The twin of both ways: row by row, in float32. Returns [T N H] in the dtype of q."""
    T, N, H = sizes(q, "T N H")
    _, K, block_len, _ = sizes(pool.keys, f"n K block_len {H}")
    out = torch.zeros_like(q)
    for t in range(T):
        start, first, last = (int(x[t]) for x in (places.start, places.first, places.last))
        if first < last:
            blocks = places.table[start : start + triton.cdiv(last, block_len)].long()
            k, v = (
                _written_out(*each)[blocks].transpose(0, 1).flatten(1, 2)[:, first:last]
                for each in ((pool.keys, pool.key_scales), (pool.values, pool.value_scales))
            )
            grouped = q[t].float().view(K, N // K, H) * H**-0.5
            out[t] = ((grouped @ k.mT).softmax(-1) @ v).view(N, H).to(q.dtype)
    return out


def _written_out(codes: Tensor, scales: Tensor | None) -> Tensor:
    return codes.float() if scales is None else codes.float() * scales[..., None]


def pointers(pool: Stored) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what kernels get of a pool: without scales, something that they never read in their place."""
    keys, values, key_scales, value_scales = pool
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("blocks must be contiguous: the kernels count slots from the first key of the pool")
    return keys, values, keys if key_scales is None else key_scales, values if value_scales is None else value_scales


def kind_of(codes: Tensor) -> str:
    """Returns how keys and values are written: "plain", "int8" or "fp8"."""
    return {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}.get(codes.dtype, "plain")


@triton.jit
def encoded(x, scale, KIND: tl.constexpr):
    """Returns x / scale, float32, rounded to whole numbers or to numbers that e4m3 has.

    Adding and taking away 1.5 * 2**(23 + e) rounds to a multiple of 2**e, to nearest even. For e4m3 the grid follows
    the exponent: three bits of mantissa are kept of the larger numbers, multiples of 2**-9 below 2**-6. So the cast
    that follows is exact, on a GPU and in the interpreter, whose own rounding is not IEEE's.
    """
    x = x / tl.where(scale > 0, scale, 1.0)
    if KIND == "int8":
        return (x + 12582912.0) - 12582912.0
    else:
        bits = x.to(tl.int32, bitcast=True)
        large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        small = (x + 24576.0) - 24576.0
        return tl.where(tl.abs(x) < 0.015625, small, large)


@triton.jit
def _store(
    x, own, codes, scales, stride_t, stride_k, K, H: tl.constexpr,
    BLOCK_LEN: tl.constexpr, KIND: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    place = tl.load(own + t).to(tl.int64)
    if place >= 0:
        h = tl.arange(0, WIDTH)
        new = tl.load(x + t * stride_t + kv * stride_k + h, mask=h < H, other=0.0)
        slot = (place // BLOCK_LEN * K + kv) * BLOCK_LEN + place % BLOCK_LEN
        if KIND == "plain":
            tl.store(codes + slot * H + h, new, mask=h < H)
        else:
            wide = new.to(tl.float32)
            scale = tl.max(tl.abs(wide), 0) / (127.0 if KIND == "int8" else 448.0)
            tl.store(codes + slot * H + h, encoded(wide, scale, KIND).to(codes.dtype.element_ty), mask=h < H)
            tl.store(scales + slot, scale)


@triton.jit
def _look(
    q, mixed, mass, peak, keys, values, key_scales, value_scales, table, pos, inside, seen, kv, h, unit,
    K: tl.constexpr, H: tl.constexpr, BLOCK_LEN: tl.constexpr, SCALED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Returns mixed [M H], mass [M] and peak [M] of q [M H] after the slots `pos` [S]; seen [M S], inside [S]."""
    block = tl.load(table + pos // BLOCK_LEN, mask=inside, other=0).to(tl.int64)
    slot = (block * K + kv) * BLOCK_LEN + pos % BLOCK_LEN  # S
    place = slot[:, None] * H + h[None, :]  # S H
    whole = inside[:, None] & (h < H)[None, :]
    k = tl.load(keys + place, mask=whole, other=0.0).to(tl.float32).to(DOT)  # S H
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * unit  # M S, in powers of two
    if SCALED:
        scores *= tl.load(key_scales + slot, mask=inside, other=0.0)[None, :]
    scores = tl.where(seen, scores, -float("inf"))
    top = tl.maximum(peak, tl.max(scores, 1))  # M
    level = tl.where(top == -float("inf"), 0.0, top)  # rows that have seen nothing yet must not become NaN
    weights = tl.exp2(scores - level[:, None])
    fade = tl.exp2(peak - level)
    mass = mass * fade + tl.sum(weights, 1)
    if SCALED:
        weights *= tl.load(value_scales + slot, mask=inside, other=0.0)[None, :]
    v = tl.load(values + place, mask=whole, other=0.0).to(tl.float32).to(DOT)  # S H
    mixed = mixed * fade[:, None] + tl.dot(weights.to(DOT), v, input_precision="ieee")
    return mixed, mass, top


@triton.jit
def _part(
    q, keys, values, key_scales, value_scales, table, start, first, last, rows, mixed_out, mass_out, unit, n_parts,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BLOCK_LEN: tl.constexpr, SCALED: tl.constexpr,
    DOT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """One part of the context of one row, for the query heads of one key head."""
    r = tl.program_id(0)
    kv = tl.program_id(1)
    part = tl.program_id(2)
    t = tl.load(rows + r).to(tl.int64)
    low, high = tl.load(first + t), tl.load(last + t)
    table += tl.load(start + t)
    share = tl.cdiv(tl.cdiv(high - low, n_parts), S) * S
    begin = low + part * share
    end = tl.minimum(begin + share, high)
    g, h = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    mine = (g < N // K)[:, None] & (h < H)[None, :]
    head = kv * (N // K) + g
    queries = tl.load(q + t * N * H + head[:, None] * H + h[None, :], mask=mine, other=0.0).to(DOT)  # HEADS WIDTH
    mixed = tl.zeros([HEADS, WIDTH], tl.float32)
    mass = tl.zeros([HEADS], tl.float32)
    peak = tl.full([HEADS], -float("inf"), tl.float32)
    for at in range(begin, end, S):
        pos = at + tl.arange(0, S)
        inside = pos < end
        seen = inside[None, :] & (g >= 0)[:, None]
        mixed, mass, peak = _look(
            queries, mixed, mass, peak, keys, values, key_scales, value_scales, table, pos, inside, seen, kv, h, unit,
            K, H, BLOCK_LEN, SCALED, DOT,
        )  # fmt: skip
    place = (r.to(tl.int64) * N + head) * n_parts + part
    if begin < end:
        mixed = mixed / mass[:, None]
        tl.store(mixed_out + place[:, None] * H + h[None, :], mixed, mask=mine)
    tl.store(mass_out + place, peak + tl.log2(tl.where(mass > 0, mass, 1.0)), mask=g < N // K)


@triton.jit
def _combine(
    mixed_in, mass_in, rows, out, n_parts, N: tl.constexpr, H: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    """Parts of one row and head, each with the logarithm of its mass, become their mean weighted by mass."""
    r = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part, h = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    place = (r * N + head) * n_parts + part
    mass = tl.load(mass_in + place, mask=part < n_parts, other=-float("inf"))
    peak = tl.max(mass, 0)
    weight = tl.exp2(mass - tl.where(peak == -float("inf"), 0.0, peak))
    mask = (mass > -float("inf"))[:, None] & (h < H)[None, :]  # parts without keys wrote none
    mixed = tl.load(mixed_in + place[:, None] * H + h[None, :], mask=mask, other=0.0)
    total = tl.sum(weight, 0)
    mean = tl.sum(mixed * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    t = tl.load(rows + r).to(tl.int64)
    tl.store(out + (t * N + head) * H + h, mean.to(out.dtype.element_ty), mask=h < H)


@triton.jit
def _rows_of_tile(
    q, keys, values, key_scales, value_scales, table, start, first, last, tiles, out, unit,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BLOCK_LEN: tl.constexpr, SCALED: tl.constexpr,
    DOT: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Neighbouring rows of one sequence, for the query heads of one key head: row i of the tile is token i // heads."""
    GROUP: tl.constexpr = N // K
    kv = tl.program_id(1)
    t0 = tl.load(tiles + 2 * tl.program_id(0))
    n = tl.load(tiles + 2 * tl.program_id(0) + 1)
    m, h = tl.arange(0, M), tl.arange(0, WIDTH)
    valid = m // GROUP < n
    t = t0 + m // GROUP  # M
    place = (t.to(tl.int64) * N + kv * GROUP + m % GROUP)[:, None] * H + h[None, :]  # M WIDTH
    mine = valid[:, None] & (h < H)[None, :]
    queries = tl.load(q + place, mask=mine, other=0.0).to(DOT)
    low = tl.load(first + t, mask=valid, other=0)
    high = tl.load(last + t, mask=valid, other=0)
    table += tl.load(start + t0)
    mixed = tl.zeros([M, WIDTH], tl.float32)
    mass = tl.zeros([M], tl.float32)
    peak = tl.full([M], -float("inf"), tl.float32)
    end = tl.load(last + t0 + n - 1)
    for at in range(tl.load(first + t0), end, S):
        pos = at + tl.arange(0, S)
        seen = (pos[None, :] >= low[:, None]) & (pos[None, :] < high[:, None])
        mixed, mass, peak = _look(
            queries, mixed, mass, peak, keys, values, key_scales, value_scales, table, pos, pos < end, seen, kv, h,
            unit, K, H, BLOCK_LEN, SCALED, DOT,
        )  # fmt: skip
    mixed = mixed / tl.where(mass > 0, mass, 1.0)[:, None]
    tl.store(out + place, mixed.to(out.dtype.element_ty), mask=mine)
