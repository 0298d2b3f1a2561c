"""One token from a row of logits and a random number: temperature, min_p, top_k and top_p.

In: logits that nothing more is forbidden in, settings, one uniform number per row. Out: a token per row, by inverting
the cumulative distribution in vocabulary order. `shaped` is the definition: it sorts and sums the whole vocabulary. For
202,048 ids that takes 50 ms a row, so `draw_all` draws from all tokens in a few passes, and where only some are kept,
`candidates` finds the most probable ones on the device and `pick` takes one of them on the host.
A row's token depends on its own logits, settings and number alone, whatever other rows there are. A row without a
finite logit gets some token that means nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from puna.engine.request import Sampling
from puna.kernels.ranking import greatest_k, rows_at_once
from puna.shapes import sizes

_BLOCK = 64  # entries that are summed before sums are cumulated

Column = NDArray[np.float64]


class Settings(NamedTuple):
    """The numbers of some rows, float64 [G 1] each, on the host."""

    temperature: Column
    top_k: Column
    top_p: Column
    min_p: Column

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "Settings":
        numbers = np.array([[s.temperature, s.top_k, s.top_p, s.min_p] for s in samplings], dtype=np.float64)
        return cls(*np.split(numbers.reshape(-1, 4), 4, axis=1))

    def rows(self, first: int, last: int) -> "Settings":
        return Settings(*(column[first:last] for column in self))

    def device_temperature(self, device: torch.device) -> Tensor:
        """Returns the temperatures as float32 [G 1]."""
        return torch.from_numpy(self.temperature).float().to(device)


class Candidates(NamedTuple):
    """The most probable tokens of some rows: logits [G k], falling, and ids [G k] of them, and the probability of the
    first one [G 1], among all tokens and after temperature; 1 where nobody needs it.
    """

    logits: Tensor
    ids: Tensor
    share: Tensor


class Picked(NamedTuple):
    """Tokens int64 [G], and where they are final: bool [G]. Elsewhere more candidates are needed."""

    tokens: NDArray[np.int64]
    is_sure: NDArray[np.bool_]


def shaped(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Returns the distribution [R V] that tokens are drawn from, after temperature, min_p, top_k and top_p.

    Among equal logits the lower id ranks first, so top_k keeps exactly k tokens. The most probable token always stays.
    """
    _, V = sizes(logits, f"{len(samplings)} V")
    temperature, top_k, top_p, min_p = (
        torch.from_numpy(column).float().to(logits.device) for column in Settings.of(samplings)
    )
    peaks = logits.amax(dim=-1, keepdim=True)  # R 1
    scaled = (logits - peaks) / temperature  # R V, at most 0, so that a small temperature cannot overflow
    scaled = scaled.masked_fill(scaled.exp() < min_p, -torch.inf)
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)  # R V
    ranks = torch.arange(V, device=logits.device)
    kept = (ranks < top_k) | (top_k == 0)
    mass = ordered.masked_fill(~kept, -torch.inf).softmax(dim=-1, dtype=torch.float64)
    before = mass.cumsum(dim=-1) - mass  # R V, mass of the more probable tokens
    kept &= (before < top_p) | (top_p == 1) | (ranks == 0)
    scaled = scaled.masked_fill(~torch.zeros_like(kept).scatter(1, ids, kept), -torch.inf)
    return scaled.softmax(dim=-1, dtype=torch.float64)  # R V


def keeps_all(sampling: Sampling) -> bool:
    """Returns whether every token may be drawn: the case of `draw_all`, others are those of `draw_some`."""
    return sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0


def is_closed(sampling: Sampling) -> bool:
    """Returns whether what min_p and top_k keep is known from the most probable tokens alone."""
    return sampling.top_k > 0 or sampling.min_p > 0


def draw_all(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Returns a token [G] of each row of `logits` [G V]. temperature float32, uniform float64 [G 1]."""
    return torch.cat([_draw_all(logits[rows], temperature[rows], uniform[rows]) for rows in _pieces(logits)])


def candidates(logits: Tensor, temperature: Tensor, k: int, all_closed: bool) -> Candidates:
    """Returns the k most probable tokens of each row of `logits` [G V]. temperature float32 [G 1].

    `all_closed` says that every row is (`is_closed`); then nobody needs a sum over the vocabulary.
    """
    pieces = []
    for rows in _pieces(logits):
        part = logits[rows]
        values, ids = greatest_k(part, min(k, part.shape[1]))
        share = torch.ones_like(values[:, :1])
        if not all_closed and k < part.shape[1]:
            share = (part - values[:, :1]).div_(temperature[rows]).softmax(dim=-1).amax(dim=-1, keepdim=True)
        pieces.append(Candidates(values, ids, share))
    return pieces[0] if len(pieces) == 1 else Candidates(*map(torch.cat, zip(*pieces, strict=True)))


@np.errstate(divide="ignore", invalid="ignore")  # rows of -inf
def pick(
    logits: Column, ids: NDArray[np.int64], share: Column, settings: Settings, uniform: Column, are_all: bool
) -> Picked:
    """Returns a token of each row from those that min_p, top_k and top_p keep of its candidates.

    logits and ids [G k], share and uniform [G 1], all on the host; `are_all`: the candidates are the whole vocabulary.
    Sure is a row whose candidates hold all tokens that are kept.
    """
    order = np.lexsort((ids, -logits), axis=-1)  # among equals the lower id first
    logits, ids = np.take_along_axis(logits, order, 1), np.take_along_axis(ids, order, 1)
    temperature, top_k, top_p, min_p = settings
    ranks = np.arange(ids.shape[1])
    weights = np.exp((logits - logits[:, :1]) / temperature)  # G k
    kept = ((ranks < top_k) | (top_k == 0)) & (weights >= min_p)
    is_closed_ = (top_k > 0) | (min_p > 0)  # G 1
    has_ended = ~kept[:, -1:] | ~is_closed_  # G 1: what min_p and top_k keep lies within the candidates
    left = np.where(kept, weights, 0.0)
    mass = left.cumsum(axis=1)  # G k
    total = mass[:, -1:] if are_all else np.where(is_closed_, mass[:, -1:], 1 / share)
    kept &= (mass - left < top_p * total) | (top_p == 1) | (ranks == 0)
    # The last candidate must be dropped and not equal the last one kept, or others like it may rank before it.
    last = np.take_along_axis(logits, np.maximum(kept.sum(axis=1, keepdims=True) - 1, 0), 1)
    is_sure = has_ended & ~kept[:, -1:] & (last > logits[:, -1:]) | are_all
    order = np.where(kept, ids, np.iinfo(np.int64).max).argsort(axis=1)  # as in the vocabulary; dropped ones last
    cumulated = np.take_along_axis(np.where(kept, weights, 0.0), order, 1).cumsum(axis=1)
    # The product may round up to the total, which no entry lies above.
    target = np.minimum(uniform * cumulated[:, -1:], np.nextafter(cumulated[:, -1:], 0.0))
    place = np.minimum((cumulated <= target).sum(axis=1, keepdims=True), ids.shape[1] - 1)
    return Picked(np.take_along_axis(ids, np.take_along_axis(order, place, 1), 1)[:, 0], is_sure[:, 0])


def _pieces(logits: Tensor) -> Iterator[slice]:
    """Yields as many rows as are best taken at once."""
    n = rows_at_once(logits)
    return (slice(first, first + n) for first in range(0, len(logits), n))


def _draw_all(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Sums run over blocks first, then within the block that the number falls into."""
    _, V = sizes(logits, "G V")
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature).softmax(dim=-1)  # G V
    if V % _BLOCK:
        weights = F.pad(weights, (0, -V % _BLOCK))
    blocks = torch.unflatten(weights, 1, (-1, _BLOCK))  # G V/block block
    block, left = _invert(blocks.sum(dim=-1).double(), uniform)  # G 1, G 1
    inner = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(dim=-1)  # G block
    within = torch.searchsorted(inner, torch.minimum(left, _below(inner[:, -1:])), right=True)  # G 1
    return (block * _BLOCK + within)[:, 0].clamp(max=V - 1)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where the cumulated `weights` [G n] pass `uniform` [G 1] times their sum, and what is left there."""
    cumulated = weights.cumsum(dim=-1)  # G n
    total = cumulated[:, -1:]
    # The product may round up to the total, which no entry lies above.
    target = torch.minimum(uniform * total, _below(total))
    place = torch.searchsorted(cumulated, target, right=True).clamp(max=weights.shape[1] - 1)  # G 1
    return place, target - torch.where(place > 0, cumulated.gather(1, (place - 1).clamp(min=0)), 0.0)


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.zeros_like(x))
