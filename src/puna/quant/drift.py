"""How far a model with smaller numbers drifts from the full one: on text, token by token.

In: logits of both models for the same texts. Out: `Drift`. Not here: what makes logits, and what texts there are.
The divergence is that of the full model's next-token distribution from the small one's, in nats: unlike perplexity it
can only grow with an error, and unlike agreement it sees errors that change no choice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.errors import PromptError

Logits = Callable[[Sequence[int]], Tensor]  # of every token of one text: ids to float [T V]
_ROWS_AT_ONCE = 256  # whose log-probabilities are held, of both models


class Drift(NamedTuple):
    """Of `n_tokens` predicted tokens: the mean divergence and its standard error in nats, how often both models hold
    the same token for the most probable, and the perplexity of the text under either."""

    n_tokens: int
    divergence: float
    divergence_error: float
    agreement: float
    perplexity_full: float
    perplexity_small: float


class _Rows(NamedTuple):
    """What one text tells, a number for each predicted token: float64 [T-1]."""

    divergence: Tensor
    agreement: Tensor
    surprise_full: Tensor
    surprise_small: Tensor


def drift(full: Logits, small: Logits, texts: Iterable[Sequence[int]]) -> Drift:
    """Returns how far `small` drifts from `full` over texts of token ids, each read from its own start.

    Raises PromptError when no text has two tokens, for then nothing is predicted.
    """
    rows = [row for ids in texts if len(ids) > 1 for row in _compare(full(ids), small(ids), ids)]
    if not rows:
        raise PromptError("texts: none has two tokens, so there is nothing to predict; give a longer text")
    divergence, agreement, surprise_full, surprise_small = (torch.cat(column) for column in zip(*rows, strict=True))
    n = divergence.numel()
    return Drift(
        n_tokens=n,
        divergence=divergence.mean().item(),
        divergence_error=divergence.std().item() / n**0.5 if n > 1 else 0.0,
        agreement=agreement.mean().item(),
        perplexity_full=surprise_full.mean().exp().item(),
        perplexity_small=surprise_small.mean().exp().item(),
    )


def windows(ids: Sequence[int], length: int, first: int) -> list[list[int]]:
    """Returns a long text in pieces of at most `length` ids, each beginning with the id `first`."""
    step = length - 1
    return [[first, *ids[start : start + step]] for start in range(0, len(ids), step)]


@torch.no_grad()
def _compare(full: Tensor, small: Tensor, ids: Sequence[int]) -> Iterator[_Rows]:
    """full and small float [T V]; the last token predicts nothing that is known."""
    following = torch.tensor(ids[1:], device=full.device)  # T-1
    for start in range(0, len(following), _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, len(following)))
        p, q = (F.log_softmax(x[rows].double(), dim=-1) for x in (full, small.to(full.device)))  # r V
        chosen = following[rows, None]
        yield _Rows(
            divergence=(p.exp() * (p - q)).sum(-1),
            agreement=(p.argmax(-1) == q.argmax(-1)).double(),
            surprise_full=-p.gather(1, chosen)[:, 0],
            surprise_small=-q.gather(1, chosen)[:, 0],
        )
