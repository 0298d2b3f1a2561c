"""What lies between the matrix products of a decoder layer on a GPU, in few launches: at batch 1 a launch costs as much
as the reading of a small matrix.

In and out: states of a flat batch, heads, router logits. `add_norm` is the residual sum and the norm after it;
`to_heads` all that happens to queries and keys between projection and attention, and the way of keys and values into
their blocks; `route` the choice of experts. Where the model rounds between steps, these round too.
Plain twins: the lines of `model/attention`, `model/moe` and `model/layers` that they replace.
Every speed here is a guess until a GPU has run bench/gpu.py; the tests run the kernels in Triton's interpreter.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.kernels.attention import Stored
from puna.kernels.triton_attention import encoded, kind_of, pointers
from puna.shapes import sizes


class Turn(NamedTuple):
    """What positions do to heads: cosines and sines float32 [T H/2], and the temperature of queries float32 [T]."""

    cos: Tensor
    sin: Tensor
    temperature: Tensor


def add_norm(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the sum x + delta [T D] and its RMS norm times gain [D], both in the dtype of x."""
    T, D = sizes(x, "T D")
    total = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    if T:
        given = x if delta is None else delta
        _add_norm[(T,)](
            x, given, gain, total, normed, eps, delta is not None, D, triton.next_power_of_2(D), num_warps=8
        )
    return total, normed


def to_heads(
    q: Tensor, k: Tensor, v: Tensor, turn: Turn, pool: Stored, own: Tensor, *, rotates: bool, norm_eps: float | None
) -> Tensor:
    """Returns the queries [T N H] ready for attention; keys and values go to their places `own` int32 [T] in the pool.

    q [T N*H], k and v [T K*H] as projected; rows may lie apart, as those of a joined product do. A layer that
    `rotates` turns queries and keys and, with `norm_eps`, norms each head; one that does not scales its queries.
    """
    T, _ = sizes(q, "T NH")
    _, K, block_len, H = sizes(pool.keys, "n K block_len H")
    N = q.shape[1] // H
    out = torch.empty(T, N, H, dtype=q.dtype, device=q.device)
    keys, values, key_scales, value_scales = pointers(pool)
    if T:
        _to_heads[(T, N + 2 * K)](
            q, k, v, q.stride(0), k.stride(0), v.stride(0), *turn, own, out, keys, values, key_scales, value_scales,
            0.0 if norm_eps is None else norm_eps, N, K, H, block_len, kind_of(pool.keys),
            rotates, rotates and norm_eps is not None, triton.next_power_of_2(H // 2), num_warps=1,
        )  # fmt: skip
    return out


def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the scores [T k], in the dtype of the router's logits [T E], and experts int64 [T k], best first.

    Of equal logits the lower expert comes first.
    """
    T, E = sizes(logits, "T E")
    scores = torch.empty(T, k, dtype=logits.dtype, device=logits.device)
    experts = torch.empty(T, k, dtype=torch.int64, device=logits.device)
    if T:
        _route[(T,)](logits.contiguous(), scores, experts, E, k, triton.next_power_of_2(E), num_warps=1)
    return scores, experts


@triton.jit
def _add_norm(x, delta, gain, total, normed, eps, ADDS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    state = tl.load(x + t * D + d, mask=d < D, other=0.0)
    if ADDS:
        state = (state.to(tl.float32) + tl.load(delta + t * D + d, mask=d < D, other=0.0)).to(x.dtype.element_ty)
        tl.store(total + t * D + d, state, mask=d < D)
    wide = state.to(tl.float32)
    wide = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)).to(x.dtype.element_ty).to(tl.float32)
    scaled = wide * tl.load(gain + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(normed + t * D + d, scaled.to(x.dtype.element_ty), mask=d < D)


@triton.jit
def _to_heads(
    q, k, v, q_stride, k_stride, v_stride, cos, sin, temperature, own, out, keys, values, key_scales, value_scales, eps,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BLOCK_LEN: tl.constexpr, KIND: tl.constexpr,
    ROTATES: tl.constexpr, NORMS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One head of one row: of a query, a key or a value, in this order. Heads are handled as pairs of channels."""
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    pair = tl.arange(0, PAIRS)
    seen = pair < H // 2
    if head < N:
        source = q + t * q_stride + head * H
    elif head < N + K:
        source = k + t * k_stride + (head - N) * H
    else:
        source = v + t * v_stride + (head - N - K) * H
    even = tl.load(source + 2 * pair, mask=seen, other=0.0)
    odd = tl.load(source + 2 * pair + 1, mask=seen, other=0.0)
    dtype = even.dtype
    even, odd = even.to(tl.float32), odd.to(tl.float32)
    if head < N + K:
        if ROTATES:
            c = tl.load(cos + t * (H // 2) + pair, mask=seen, other=0.0)
            s = tl.load(sin + t * (H // 2) + pair, mask=seen, other=0.0)
            turned_even, turned_odd = even * c - odd * s, even * s + odd * c
            even, odd = turned_even.to(dtype).to(tl.float32), turned_odd.to(dtype).to(tl.float32)
            if NORMS:
                scale = tl.rsqrt(tl.sum(even * even + odd * odd, 0) / H + eps)
                even, odd = even * scale, odd * scale
        elif head < N:
            factor = tl.load(temperature + t)
            even, odd = even * factor, odd * factor
    even, odd = even.to(dtype), odd.to(dtype)
    if head < N:
        place = out + (t * N + head) * H + 2 * pair
        tl.store(place, even, mask=seen)
        tl.store(place + 1, odd, mask=seen)
    else:
        mine = tl.load(own + t).to(tl.int64)
        if mine >= 0:
            kv = (head - N) % K
            slot = (mine // BLOCK_LEN * K + kv) * BLOCK_LEN + mine % BLOCK_LEN
            if head < N + K:
                _keep(keys, key_scales, slot, even, odd, pair, seen, H, KIND)
            else:
                _keep(values, value_scales, slot, even, odd, pair, seen, H, KIND)


@triton.jit
def _keep(codes, scales, slot, even, odd, pair, seen, H: tl.constexpr, KIND: tl.constexpr):
    place = codes + slot * H + 2 * pair
    if KIND == "plain":
        tl.store(place, even, mask=seen)
        tl.store(place + 1, odd, mask=seen)
    else:
        largest = tl.maximum(tl.max(tl.abs(even.to(tl.float32)), 0), tl.max(tl.abs(odd.to(tl.float32)), 0))
        scale = largest / (127.0 if KIND == "int8" else 448.0)
        tl.store(place, encoded(even.to(tl.float32), scale, KIND).to(codes.dtype.element_ty), mask=seen)
        tl.store(place + 1, encoded(odd.to(tl.float32), scale, KIND).to(codes.dtype.element_ty), mask=seen)
        tl.store(scales + slot, scale)


@triton.jit
def _route(logits, scores, experts, E: tl.constexpr, k: tl.constexpr, WIDTH: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, WIDTH)
    left = tl.load(logits + t * E + e, mask=e < E, other=-float("inf")).to(tl.float32)
    for i in range(k):
        best = tl.max(left, 0)
        chosen = tl.min(tl.where((left == best) & (e < E), e, WIDTH), 0)
        tl.store(experts + t * k + i, chosen.to(tl.int64))
        tl.store(scores + t * k + i, (1.0 / (1.0 + tl.exp(-best))).to(scores.dtype.element_ty))
        left = tl.where(e == chosen, -float("inf"), left)
