"""Logits to the next token of every sequence in a batch.

In: logits [R V], one row per sequence, and what each sequence remembers. Out: a token per row, with log-probabilities
on request.

Order, the one vLLM uses (`vllm/v1/sample/sampler.py`): log-probabilities are taken from the untouched logits; then
repetition, frequency and presence penalties; greedy rows take their arg-max here; then temperature, min_p, top_k,
top_p, each on what the one before left; then one random number per row picks a token. transformers applies min_p last
instead of first, which differs only where min_p and top_p are both set.

A token is picked by inverting the cumulative distribution in vocabulary order with one uniform number from the
sequence's own generator. So a seed gives the same text whatever runs beside it, on every device, and rounding
differences between batch shapes move a choice only where the number falls within rounding of a border.
Not here: text, stopping, which rows belong together.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puna.engine.request import Sampling, TokenLogprobs
from puna.errors import WeightsError
from puna.shapes import sizes


class Choice(NamedTuple):
    """The next token of one sequence."""

    token: int
    logprobs: TokenLogprobs | None


class SamplerState:
    """What one sample remembers between tokens: its settings, its random numbers and, for penalties, the tokens it saw.

    Sample number i of a seeded request draws from seed + i, so that n samples differ and each can be had alone.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], sample: int = 0) -> None:
        self.sampling = sampling
        self._random = random.Random(None if sampling.seed is None else sampling.seed + sample)
        self._prompt_ids = frozenset(prompt_ids) if sampling.repetition_penalty != 1 else frozenset()
        self._counts: dict[int, int] = {}

    def record(self, token: int) -> None:
        """Counts a chosen token towards the penalties."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def uniform(self) -> float:
        """Returns the next random number, in [0, 1)."""
        return self._random.random()

    def penalise(self, logits: Tensor) -> None:
        """Applies the penalties to one row of logits [V], in place.

        Source: repetition, Keskar et al. 2019 (arXiv 1909.05858, section 4.1), the negative side as in transformers;
        presence and frequency, the OpenAI API reference.
        """
        seen = torch.tensor(sorted(self._prompt_ids.union(self._counts)), device=logits.device, dtype=torch.long)
        penalty = self.sampling.repetition_penalty
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        output = torch.tensor(list(self._counts), device=logits.device, dtype=torch.long)
        counts = torch.tensor(list(self._counts.values()), device=logits.device, dtype=logits.dtype)
        logits[output] -= self.sampling.frequency_penalty * counts + self.sampling.presence_penalty


def choose(logits: Tensor, states: Sequence[SamplerState], forbidden: Sequence[int] = ()) -> list[Choice]:
    """Returns the next token of every row of `logits` [R V] float32, and records it in the row's state.

    `forbidden` ids are never chosen, though log-probabilities still count them. `logits` is left as it is.
    Raises WeightsError when a logit is not finite: the weights are damaged or the number format overflows.
    """
    sizes(logits, f"{len(states)} V")
    if not torch.isfinite(logits).all():
        raise WeightsError("logits are not finite: check the checkpoint, or load it with dtype float32 or bfloat16")
    adjusted = logits.clone()
    adjusted[:, list(forbidden)] = -torch.inf
    for row, state in enumerate(states):
        if state.sampling.has_penalty:
            state.penalise(adjusted[row])
    tokens = adjusted.argmax(dim=-1)  # R
    drawn = [row for row, state in enumerate(states) if not state.sampling.is_greedy]
    if drawn:
        tokens[drawn] = _draw(adjusted[drawn], [states[row] for row in drawn])
    chosen = tokens.tolist()
    for state, token in zip(states, chosen, strict=True):
        state.record(token)
    reported = _logprobs(logits, tokens, [state.sampling.n_logprobs for state in states])
    return [Choice(*pair) for pair in zip(chosen, reported, strict=True)]


def shaped(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Returns the distribution [R V] that tokens are drawn from, after temperature, min_p, top_k and top_p.

    Among equal logits the lower id ranks first, so top_k keeps exactly k tokens. The most probable token always stays.
    """
    _, V = sizes(logits, f"{len(samplings)} V")

    def column(name: str) -> Tensor:
        values = [float(getattr(sampling, name)) for sampling in samplings]
        return torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]  # R 1

    peaks = logits.amax(dim=-1, keepdim=True)  # R 1
    scaled = (logits - peaks) / column("temperature")  # R V, at most 0, so that a small temperature cannot overflow
    if any(sampling.min_p > 0 for sampling in samplings):
        scaled = scaled.masked_fill(scaled.exp() < column("min_p"), -torch.inf)
    if any(sampling.top_k > 0 or sampling.top_p < 1 for sampling in samplings):
        top_k, top_p = column("top_k"), column("top_p")
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)  # R V
        ranks = torch.arange(V, device=logits.device)
        kept = (ranks < top_k) | (top_k == 0)
        mass = ordered.masked_fill(~kept, -torch.inf).softmax(dim=-1, dtype=torch.float64)
        before = mass.cumsum(dim=-1) - mass  # R V, mass of the more probable tokens
        kept &= (before < top_p) | (top_p == 1) | (ranks == 0)
        scaled = scaled.masked_fill(~torch.zeros_like(kept).scatter(1, ids, kept), -torch.inf)
    return scaled.softmax(dim=-1, dtype=torch.float64)  # R V


def _draw(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Returns one token per row [R], by inverting the cumulative distribution at the row's next random number."""
    cumulative = shaped(logits, [state.sampling for state in states]).cumsum(dim=-1)  # R V
    total = cumulative[:, -1:]
    uniform = torch.tensor([[state.uniform()] for state in states], device=logits.device, dtype=torch.float64)
    # The product may round up to the total, which no token lies above.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]  # R


def _logprobs(logits: Tensor, tokens: Tensor, wanted: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """Returns what each row asked for: nothing, the chosen token, or also its `wanted` most probable tokens."""
    rows = [row for row, n in enumerate(wanted) if n is not None]
    reported: list[TokenLogprobs | None] = [None] * len(wanted)
    if not rows:
        return reported
    logprobs = logits[rows].log_softmax(dim=-1)  # R V
    chosen = logprobs.gather(1, tokens[rows][:, None])[:, 0].tolist()
    most = min(max(n for n in wanted if n is not None), logits.shape[1])
    values, ids = logprobs.topk(most, dim=-1)
    for row, own, ids_row, values_row in zip(rows, chosen, ids.tolist(), values.tolist(), strict=True):
        n = wanted[row]
        reported[row] = TokenLogprobs(own, tuple(zip(ids_row[:n], values_row[:n], strict=True)))
    return reported
