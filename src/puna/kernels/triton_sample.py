"""Logits to tokens on a GPU, without the host learning anything on the way: penalties, filters, the draw.

In: logits, settings as tensors, one uniform number a row. Out: tokens that the next step can embed at once. The order
and meaning are `engine/sampler`'s: penalties, temperature, min_p, top_k, top_p, then the inverse of the cumulative
distribution in vocabulary order. Masses are float64 as there, summed in another order: a token differs from the plain
path's only where the uniform number or a border of top_p falls within rounding.

Nothing is sorted. A row's candidates in order of probability are the numbers `peak - logit`, whose bits, all positive,
order like whole numbers. The last candidate that top_k, then top_p keeps is found digit by digit, four bits a pass:
every program counts and weighs its piece of the vocabulary by the next digit, the pass after adds the pieces up.
Ties are kept in vocabulary order, as by a stable sort.
Plain twin: `engine.sampler.choose`.
Every speed here is a guess until a GPU has run bench/gpu.py; the tests run the kernels in Triton's interpreter.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.shapes import sizes

PIECE = 4096
"""Numbers of the vocabulary that one program looks at."""
DIGITS = 8  # of four bits


class Wishes(Protocol):
    """What `Settings` reads of a row's sampling settings, as `engine.request.Sampling` has them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_p(self) -> float: ...
    @property
    def is_greedy(self) -> bool: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...


class Settings(NamedTuple):
    """How each row is sampled: [R], float32 but top_k int32 and top_p float64, so that ties end where they should.

    A greedy row is one that keeps a single token.
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor

    @classmethod
    def of(cls, rows: Sequence[Wishes], device: torch.device) -> "Settings":
        """Returns the settings of `rows` on `device`, in one copy."""
        table = [
            (
                1.0 if row.is_greedy else row.temperature,
                0.0 if row.is_greedy else row.min_p,
                1 if row.is_greedy else min(row.top_k, 2**24),
                1.0 if row.is_greedy else row.top_p,
                row.repetition_penalty,
                row.presence_penalty,
                row.frequency_penalty,
            )
            for row in rows
        ]
        columns = torch.tensor(table, dtype=torch.float64).t().contiguous().to(device, non_blocking=True)  # 7 R
        temperature, min_p, top_k, top_p, *penalties = columns.unbind(0)
        narrow = [penalty.float() for penalty in penalties]
        return cls(temperature.float(), min_p.float(), top_k.to(torch.int32), top_p, *narrow)


class Drawn(NamedTuple):
    """Tokens int64 [R], and for each row whether its logits were finite: read both before believing a token."""

    tokens: Tensor
    is_finite: Tensor


def penalise(logits: Tensor, settings: Settings, ids: Tensor, counts: Tensor) -> None:
    """Applies the penalties to logits [R V] float32, in place.

    ids int32 [R M] are the different tokens of each row's prompt and output, -1 where a row has fewer; counts float32
    [R M] says how often each is in the output, 0 for those of the prompt only.
    """
    R, V = sizes(logits, "R V")
    _, M = sizes(ids, f"{R} M")
    if R and M:
        _penalise[(R, triton.cdiv(M, 256))](
            logits, ids, counts, settings.repetition, settings.presence, settings.frequency, V, M, 256
        )


def draw(logits: Tensor, settings: Settings, uniforms: Tensor) -> Drawn:
    """Returns a token for each row of logits [R V] float32, drawn with uniforms float64 [R] in [0, 1).

    A forbidden token's logit is -inf. Logits are left as they are.
    """
    R, V = sizes(logits, "R V")
    logits, device = logits.contiguous(), logits.device
    n_pieces = triton.cdiv(V, PIECE)
    peaks = logits.amax(dim=1)  # R, NaN where any is
    shape = (logits, peaks, settings.temperature, settings.min_p)
    tokens = torch.zeros(R, dtype=torch.int64, device=device)
    if R == 0:
        return Drawn(tokens, peaks.isfinite())
    # What a pass learnt: the candidate's digits so far, and number and mass of all candidates before it.
    digits = torch.zeros(2 * DIGITS + 1, R, dtype=torch.int64, device=device)
    before = torch.zeros(2 * DIGITS + 1, R, dtype=torch.int32, device=device)
    mass = torch.zeros(2 * DIGITS + 1, R, dtype=torch.float64, device=device)
    counts = torch.zeros(2 * DIGITS, R, n_pieces, 16, dtype=torch.int32, device=device)
    masses = torch.zeros(2 * DIGITS, R, n_pieces, 16, dtype=torch.float64, device=device)
    limits = torch.empty(R, dtype=torch.float64, device=device)
    state = (digits, before, mass, counts, masses, settings.top_k, settings.top_p, limits)
    pieces, size = triton.next_power_of_2(n_pieces), min(PIECE, triton.next_power_of_2(V))
    for at in range(2 * DIGITS):
        _count[(R, n_pieces)](*shape, *state, R, V, n_pieces, at, DIGITS, pieces, size, min(512, size), num_warps=4)
    bound = torch.empty(R, dtype=torch.int64, device=device)
    ties = torch.empty(R, n_pieces, dtype=torch.int32, device=device)
    _bound[(R,)](*state, bound, ties, R, V, n_pieces, DIGITS, pieces)
    kept = torch.empty(R, n_pieces, dtype=torch.float64, device=device)
    _weigh[(R, n_pieces)](*shape, bound, ties, kept, V, n_pieces, size, num_warps=8)
    _pick[(R,)](*shape, bound, ties, kept, uniforms, tokens, V, n_pieces, pieces, size, num_warps=8)
    return Drawn(tokens, peaks.isfinite())


@triton.jit
def _penalise(logits, ids, counts, repetition, presence, frequency, V, M, WIDTH: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    id_ = tl.load(ids + r * M + m, mask=m < M, other=-1)
    known = id_ >= 0
    count = tl.load(counts + r * M + m, mask=known, other=0.0)
    value = tl.load(logits + r * V + id_, mask=known, other=0.0)
    penalty = tl.load(repetition + r)
    value = tl.where(value > 0, value / penalty, value * penalty)
    less = tl.load(frequency + r) * count + tl.load(presence + r)
    tl.store(logits + r * V + id_, tl.where(count > 0, value - less, value), mask=known)


@triton.jit
def _candidates(logits, peaks, temperature, min_p, r, v, V):
    """Returns the order keys int64 and masses float64 of the tokens `v` of row r, as (peak - logit) / temperature.

    A token below min_p has mass 0 and the key of infinity; places beyond the vocabulary have the largest key.
    """
    inside = v < V
    logit = tl.load(logits + r * V + v, mask=inside, other=-float("inf"))
    cost = tl.abs((logit - tl.load(peaks + r)) / tl.load(temperature + r))
    cost = tl.where(tl.exp(-cost) < tl.load(min_p + r), float("inf"), cost)
    key = cost.to(tl.int32, bitcast=True).to(tl.int64)
    mass = tl.exp(-cost.to(tl.float64))
    return tl.where(inside, key, 0x7FFFFFFF), tl.where(inside, mass, 0.0)


@triton.jit
def _advance(
    digits, before, mass, counts, masses, top_k, top_p, limits, r, R, V, n_pieces, at,
    DIGITS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Returns what is known before pass `at`: the digits found so far, and number and mass of candidates before them.

    Passes 0 to DIGITS - 1 look for the top_k-th candidate; the others for the one at which the mass of those that
    top_k kept reaches the share top_p.
    """
    prefix = tl.zeros([], tl.int64)
    n = tl.zeros([], tl.int32)
    m = tl.zeros([], tl.float64)
    if at > 0:
        p = tl.arange(0, PIECES)
        d = tl.arange(0, 16)
        place = ((at - 1) * R + r) * n_pieces * 16 + p[:, None] * 16 + d[None, :]
        count = tl.sum(tl.load(counts + place, mask=(p < n_pieces)[:, None] & (d >= 0)[None, :], other=0), 0)
        weight = tl.sum(tl.load(masses + place, mask=(p < n_pieces)[:, None] & (d >= 0)[None, :], other=0.0), 0)
        n_old = tl.load(before + (at - 1) * R + r)
        m_old = tl.load(mass + (at - 1) * R + r)
        k = tl.load(top_k + r)
        if at <= DIGITS:
            is_before = n_old + tl.cumsum(count, 0) < tl.where((k > 0) & (k < V), k, V)
        else:
            is_before = m_old + tl.cumsum(weight, 0) < tl.load(limits + r)
        digit = tl.minimum(tl.sum(is_before.to(tl.int32), 0), 15)
        prefix = tl.load(digits + (at - 1) * R + r) * 16 + digit
        n = n_old + tl.sum(tl.where(d < digit, count, 0), 0)
        m = m_old + tl.sum(tl.where(d < digit, weight, 0.0), 0)
        if at == DIGITS:
            # The mass that top_k kept: all before the candidate, and as many of its equals as there was room for.
            one = tl.exp(-prefix.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64))
            room = tl.where((k > 0) & (k < V), k, V) - n
            tl.store(limits + r, tl.load(top_p + r) * (m + room * one))
    return prefix, n, m


@triton.jit
def _count(
    logits, peaks, temperature, min_p, digits, before, mass, counts, masses, top_k, top_p, limits, R, V, n_pieces, at,
    DIGITS: tl.constexpr, PIECES: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    prefix, n, m = _advance(
        digits, before, mass, counts, masses, top_k, top_p, limits, r, R, V, n_pieces, at, DIGITS, PIECES
    )
    nth = at % DIGITS
    if nth == 0:  # a new search
        prefix = prefix * 0
        n = n * 0
        m = m * 0
    if piece == 0:
        tl.store(digits + at * R + r, prefix)
        tl.store(before + at * R + r, n)
        tl.store(mass + at * R + r, m)
    d = tl.arange(0, 16)
    shift = 4 * (DIGITS - 1 - nth)
    count = tl.zeros([16], tl.int32)
    total = tl.zeros([16], tl.float64)
    for begin in range(0, SIZE, STEP):  # in steps whose table of digits fits the registers
        v = piece * SIZE + begin + tl.arange(0, STEP)
        key, weight = _candidates(logits, peaks, temperature, min_p, r, v, V)
        mine = ((key >> shift) >> 4 == prefix) & (v < V)
        hit = mine[:, None] & (((key >> shift) & 15)[:, None] == d[None, :])  # STEP 16
        count += tl.sum(hit.to(tl.int32), 0)
        total += tl.sum(tl.where(hit, weight[:, None], 0.0), 0)
    place = ((at * R + r) * n_pieces + piece) * 16 + d
    tl.store(counts + place, count)
    tl.store(masses + place, total)


@triton.jit
def _bound(
    digits, before, mass, counts, masses, top_k, top_p, limits, bound, ties, R, V, n_pieces,
    DIGITS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Writes the last key that is kept, and how many of its equals are kept within each piece of the vocabulary."""
    r = tl.program_id(0).to(tl.int64)
    k = tl.load(top_k + r)
    share = tl.load(top_p + r)
    # What top_k alone keeps.
    key, n, m = _advance(
        digits, before, mass, counts, masses, top_k, top_p, limits, r, R, V, n_pieces, DIGITS, DIGITS, PIECES
    )
    room = tl.where((k > 0) & (k < V), k, V) - n
    at = DIGITS
    if share < 1.0:
        key, n, m = _advance(
            digits, before, mass, counts, masses, top_k, top_p, limits, r, R, V, n_pieces, 2 * DIGITS, DIGITS, PIECES
        )
        one = tl.exp(-key.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64))
        missing = (tl.load(limits + r) - m) / tl.where(one > 0, one, 1.0)
        room = tl.maximum(tl.ceil(missing), 1.0).to(tl.int32)
        at = at + DIGITS
    tl.store(bound + r, key)
    p = tl.arange(0, PIECES)
    place = (((at - 1) * R + r) * n_pieces + p) * 16 + (key & 15)
    equal = tl.load(counts + place, mask=p < n_pieces, other=0)
    earlier = tl.cumsum(equal, 0) - equal
    tl.store(ties + r * n_pieces + p, tl.minimum(tl.maximum(room - earlier, 0), equal), mask=p < n_pieces)


@triton.jit
def _kept(logits, peaks, temperature, min_p, bound, ties, r, piece, V, n_pieces, SIZE: tl.constexpr):
    """Returns the masses [SIZE] of the tokens of one piece, those that are not kept without any."""
    v = piece * SIZE + tl.arange(0, SIZE)
    key, weight = _candidates(logits, peaks, temperature, min_p, r, v, V)
    last = tl.load(bound + r)
    is_tie = (key == last) & (v < V)
    rank = tl.cumsum(is_tie.to(tl.int32), 0)  # from 1
    stays = (key < last) | (is_tie & (rank <= tl.load(ties + r * n_pieces + piece)))
    return tl.where(stays, weight, 0.0)


@triton.jit
def _weigh(logits, peaks, temperature, min_p, bound, ties, kept, V, n_pieces, SIZE: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    weight = _kept(logits, peaks, temperature, min_p, bound, ties, r, piece, V, n_pieces, SIZE)
    tl.store(kept + r * n_pieces + piece, tl.sum(weight, 0))


@triton.jit
def _pick(
    logits, peaks, temperature, min_p, bound, ties, kept, uniforms, tokens, V, n_pieces,
    PIECES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The first token at which the cumulative mass passes uniform * total; rounding may not lead past the last one."""
    r = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, PIECES)
    share = tl.load(kept + r * n_pieces + p, mask=p < n_pieces, other=0.0)
    upto = tl.cumsum(share, 0)
    target = tl.load(uniforms + r) * tl.sum(share, 0)
    nonempty = tl.max(tl.where(share > 0, p, 0), 0)
    piece = tl.minimum(tl.sum((upto <= target).to(tl.int32), 0), nonempty)
    rest = target - tl.sum(tl.where(p < piece, share, 0.0), 0)
    weight = _kept(logits, peaks, temperature, min_p, bound, ties, r, piece, V, n_pieces, SIZE)
    i = tl.arange(0, SIZE)
    last = tl.max(tl.where(weight > 0, i, 0), 0)
    nth = tl.minimum(tl.sum((tl.cumsum(weight, 0) <= rest).to(tl.int32), 0), last)
    tl.store(tokens + r, (piece * SIZE + nth).to(tl.int64))
