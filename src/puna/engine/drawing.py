"""One token from a row of logits and a random number: temperature, min_p, top_k and top_p.

In: logits that nothing more is forbidden in, settings, one uniform number per row. Out: a token per row, by inverting
the cumulative distribution in vocabulary order. `shaped` is the definition: it sorts and sums the whole vocabulary. For
202,048 ids that takes 50 ms a row, so `draw_all` and `draw_some` find the same tokens in a few passes, and sort only
the most probable ones.
A row's token depends on its own logits, settings and number alone, whatever other rows there are. A row without a
finite logit gets some token that means nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.engine.request import Sampling
from puna.kernels.ranking import greatest_k, rows_at_once
from puna.shapes import sizes

_BLOCK = 64  # entries that are summed before sums are cumulated


class Settings(NamedTuple):
    """The numbers of some rows, float32 [G 1] each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> "Settings":
        numbers = [[s.temperature, float(s.top_k), s.top_p, s.min_p] for s in samplings]
        return cls(*torch.split(torch.tensor(numbers, dtype=torch.float32, device=device), 1, dim=1))

    def rows(self, places: Tensor | slice) -> "Settings":
        return Settings(*(column[places] for column in self))


class Drawn(NamedTuple):
    """Tokens int64 [G], and where they are final: bool [G]. Elsewhere more candidates are needed."""

    tokens: Tensor
    is_sure: Tensor


def shaped(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Returns the distribution [R V] that tokens are drawn from, after temperature, min_p, top_k and top_p.

    Among equal logits the lower id ranks first, so top_k keeps exactly k tokens. The most probable token always stays.
    """
    _, V = sizes(logits, f"{len(samplings)} V")
    temperature, top_k, top_p, min_p = Settings.of(samplings, logits.device)
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


def draw_all(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Returns a token [G] of each row of `logits` [G V] from all its tokens. uniform float64 [G 1]."""
    pieces = _pieces(logits, settings, uniform)
    return torch.cat([_draw_all(*piece) for piece in pieces])


def draw_some(logits: Tensor, settings: Settings, uniform: Tensor, k: int, all_closed: bool) -> Drawn:
    """Returns a token of each row of `logits` [G V] from those that min_p, top_k and top_p keep. uniform float64 [G 1].

    Looks at the k most probable tokens of a row, and is sure where those hold all that are kept. `all_closed` says that
    every row is; then nobody needs a sum over the vocabulary.
    """
    pieces = [_draw_some(*piece, k, all_closed) for piece in _pieces(logits, settings, uniform)]
    return pieces[0] if len(pieces) == 1 else Drawn(*map(torch.cat, zip(*pieces, strict=True)))


def _pieces(logits: Tensor, settings: Settings, uniform: Tensor) -> Iterator[tuple[Tensor, Settings, Tensor]]:
    """Yields as many rows as are best taken at once."""
    n = rows_at_once(logits)
    for first in range(0, len(logits), n):
        rows = slice(first, first + n)
        yield logits[rows], settings.rows(rows), uniform[rows]


def _draw_all(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Sums run over blocks first, then within the block that the number falls into."""
    _, V = sizes(logits, "G V")
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(settings.temperature).softmax(dim=-1)  # G V
    if V % _BLOCK:
        weights = F.pad(weights, (0, -V % _BLOCK))
    blocks = torch.unflatten(weights, 1, (-1, _BLOCK))  # G V/block block
    block, left = _invert(blocks.sum(dim=-1).double(), uniform)  # G 1, G 1
    inner = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(dim=-1)  # G block
    within = torch.searchsorted(inner, torch.minimum(left, _below(inner[:, -1:])), right=True)  # G 1
    return (block * _BLOCK + within)[:, 0].clamp(max=V - 1)


def _draw_some(logits: Tensor, settings: Settings, uniform: Tensor, k: int, all_closed: bool) -> Drawn:
    _, V = sizes(logits, "G V")
    k = min(k, V)
    temperature, top_k, top_p, min_p = settings
    values, ids = _ranked(logits, k)  # G k, G k
    weights = ((values - values[:, :1]) / temperature).double().exp()  # G k
    ranks = torch.arange(k, device=logits.device)
    kept = ((ranks < top_k) | (top_k == 0)) & (weights >= min_p)
    has_ended = ~kept[:, -1:]  # G 1: what min_p and top_k keep lies within the candidates
    mass = torch.where(kept, weights, 0.0).cumsum(dim=-1)  # G k
    total = mass[:, -1:]
    if k < V and not all_closed:
        spread = (logits - values[:, :1]).div_(temperature).softmax(dim=-1)  # G V, the most probable weighs 1 / total
        total = torch.where((top_k > 0) | (min_p > 0), total, 1 / spread.amax(dim=-1, keepdim=True).double())
        has_ended |= (top_k == 0) & (min_p == 0)
    before = mass - torch.where(kept, weights, 0.0)
    kept &= (before < top_p * total) | (top_p == 1) | (ranks == 0)
    # The last candidate must be dropped and not equal the last one kept, or others like it may rank before it.
    last = values.gather(1, (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0))  # G 1
    is_sure = (has_ended & ~kept[:, -1:] & (last > values[:, -1:]))[:, 0] if k < V else torch.ones_like(kept[:, 0])
    ids, order = torch.where(kept, ids, V).sort(dim=-1)  # in the order of the vocabulary; dropped ones last
    place, _ = _invert(torch.where(kept, weights, 0.0).gather(1, order), uniform)  # G 1
    return Drawn(ids.gather(1, place)[:, 0].clamp(max=V - 1), is_sure)


def _ranked(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k greatest of each row [G k] and their ids [G k], the lower id first among equals."""
    values, ids = greatest_k(logits, k)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


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
