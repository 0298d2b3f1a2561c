"""Logits to the next tokens of every sequence in a batch.

In: logits [R V], one row for each sequence and one more behind each of its drafts, and what each sequence remembers.
Out: the tokens that follow, with log-probabilities on request.

Order, the one vLLM uses (`vllm/v1/sample/sampler.py`): log-probabilities are taken from the untouched logits; then ids
are forbidden, `bias` and `penalties` applied, and what the `grammar` does not allow is barred; greedy rows take their
arg-max here; then temperature, min_p, top_k, top_p, each on what the one before left; then one random number per row
picks a token (`drawing`). transformers applies min_p last instead of first, which differs only where min_p and top_p
are both set.

The t-th token of a sequence is drawn with the t-th number of the sequence's own generator. So a seed gives the same
text whatever runs beside it, on every device, and rounding differences between batch shapes move a choice only where
the number falls within rounding of a border.

Drafts (`speculate`) are checked by the same rule. Each row is sampled with the number that its token would have got
anyway, as if the drafts before it had been chosen; a draft is accepted where it equals what was sampled, and the rows
behind the first that does not are dropped. So tokens, and their distribution, are those of a run without drafts.

What it costs: a greedy row an arg-max; a drawn row a few passes over its logits; a penalty work for the distinct tokens
seen. Settings become tensors once for each composition of the batch, and one copy to the host ends a step.
Not here: text, stopping, which rows belong together.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.engine.bias import Bias
from puna.engine.drawing import Candidates, Settings, candidates, draw_all, is_closed, keeps_all, pick
from puna.engine.grammar import Matcher
from puna.engine.penalties import Penalties, Seen
from puna.engine.request import Sampling, TokenLogprobs
from puna.errors import WeightsError
from puna.kernels.ranking import Ranked, greatest, greatest_k, rows_at_once
from puna.shapes import sizes

CANDIDATES = (64, 1024)
"""How many of the most probable tokens are looked at for top_k, top_p and min_p. Where the first number does not hold
all tokens that are kept, the second is tried, then the whole vocabulary; the result is the same."""


class Choice(NamedTuple):
    """A token of one sequence."""

    token: int
    logprobs: TokenLogprobs | None


class SamplerState:
    """What one sample remembers between tokens: its settings, its random numbers, its place in a grammar and, for
    penalties, the tokens it saw.

    Sample number i of a seeded request draws from seed + i, so that n samples differ and each can be had alone.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], sample: int = 0, matcher: Matcher | None = None
    ) -> None:
        self.sampling = sampling
        self.matcher = matcher
        self.seen = Seen(sampling, prompt_ids) if sampling.has_penalty else None
        self.bias = Bias(sampling) if sampling.has_bias else None
        self._random = random.Random(None if sampling.seed is None else sampling.seed + sample)
        self._ahead: deque[float] = deque()  # random numbers that were looked at and not used up

    def record(self, token: int) -> None:
        """Counts a chosen token: towards the penalties, in the grammar, and its random number as used up."""
        if not self.sampling.is_greedy:
            self.uniforms(1)
            self._ahead.popleft()
        if self.seen is not None:
            self.seen.record(token)
        if self.bias is not None:
            self.bias.n_written += 1
        if self.matcher is not None:
            self.matcher.advance(token)

    @property
    def is_complete(self) -> bool:
        """Whether the text follows a grammar and nothing more can follow in it."""
        return self.matcher is not None and self.matcher.is_complete

    def uniforms(self, n: int) -> list[float]:
        """Returns the random numbers, in [0, 1), of the next `n` tokens."""
        while len(self._ahead) < n:
            self._ahead.append(self._random.random())
        return list(islice(self._ahead, n))


def choose(logits: Tensor, states: Sequence[SamplerState], forbidden: Sequence[int] = ()) -> list[Choice]:
    """Returns the next token of every row of `logits` [R V] float32, and records it in the row's state.

    As `Sampler.verify` without drafts, for sequences that can go on.
    """
    return [choices[0] for choices in Sampler(forbidden).verify(logits, states, [()] * len(states))]


class Sampler:
    """Chooses for one engine. Keeps the tensors of the batch that it saw last, which serve until its members change.

    `forbidden` ids are never chosen, though log-probabilities still count them.
    """

    def __init__(self, forbidden: Sequence[int] = ()) -> None:
        self._forbidden = torch.tensor(sorted(set(forbidden)), dtype=torch.long)
        self._bar: Tensor | None = None  # what is added to logits so that forbidden ids are never the greatest
        self._layout: _Layout | None = None
        self._penalties: Penalties | None = None
        self._room: Tensor | None = None  # for the rows of one step; fresh memory costs more than the copy

    def verify(
        self, logits: Tensor, states: Sequence[SamplerState], drafts: Sequence[Sequence[int]]
    ) -> list[list[Choice]]:
        """Returns the tokens that follow in each sequence, one more than it accepts of its drafts (none more
        where those complete its grammar), and records them.

        `logits` [R V] float32 has 1 + len(draft) rows for each state, in order: behind what the sequence holds, and
        behind each draft. `logits` is left as it is. A sequence whose grammar allows no token at all gets none.
        Raises WeightsError when a row's greatest logit is not finite (NaN counts as greatest): the weights are damaged
        or the number format overflows.
        """
        layout = self._laid_out(states, [1 + len(draft) for draft in drafts], logits.device)
        sizes(logits, f"{layout.n_rows} V")
        bar = self._bar_of(logits)
        peaks, tokens = greatest(logits, bar)  # R, R
        worked: _Worked | None = None
        if layout.worked is not None:
            worked = self._work(self._copied(logits, layout.worked), bar, layout, states, drafts)
            tokens = tokens.index_copy(0, layout.worked, worked.tokens)
        found = _to_host(tokens, peaks, worked)
        if worked is not None and layout.some.settings is not None:
            uniforms = [u for i in layout.some.states for u in states[i].uniforms(1 + len(drafts[i]))]
            _pick_some(found, worked, layout, np.array(uniforms)[:, None])
        barred = {layout.worked_rows[i] for i, is_open in enumerate(found.is_open) if not is_open}
        logprobs = _logprobs(logits, found.tokens, layout)
        chosen: list[list[Choice]] = []
        for state, draft, first in zip(states, drafts, layout.firsts, strict=True):
            accepted: list[Choice] = []
            for row in range(first, first + 1 + len(draft)):
                if row in barred:
                    break
                token = found.tokens[row]
                accepted.append(Choice(token, logprobs[row]))
                state.record(token)
                if state.is_complete or (row < first + len(draft) and token != draft[row - first]):
                    break
            chosen.append(accepted)
        return chosen

    def _laid_out(self, states: Sequence[SamplerState], lens: list[int], device: torch.device) -> "_Layout":
        if self._layout is None or not self._layout.serves(states, lens, device):
            self._layout = _Layout(states, lens, device)
        return self._layout

    def _copied(self, logits: Tensor, places: Tensor) -> Tensor:
        """Returns the rows `places` [A] of `logits` [R V], good until the next call."""
        n = len(places) * logits.shape[1]
        if self._room is None or self._room.numel() < n or self._room.device != logits.device:
            self._room = logits.new_empty(n)
        room = self._room[:n].view(len(places), -1)  # A V
        return torch.index_select(logits, 0, places, out=room)

    def _work(
        self,
        rows: Tensor,
        bar: Tensor | None,
        layout: "_Layout",
        states: Sequence[SamplerState],
        drafts: Sequence[Sequence[int]],
    ) -> "_Worked":
        """Changes `rows` [A V], which it may keep, as their sequences ask, and chooses a token of each."""
        if bar is not None:
            rows += bar
        for i, first, end in layout.biased:
            if (bias := states[i].bias) is not None:
                bias.apply(rows[first:end])
        if layout.penalised.places is not None:
            accounts = [seen for i in layout.penalised.states if (seen := states[i].seen) is not None]
            if self._penalties is None or not self._penalties.serves(accounts, rows.device):
                self._penalties = Penalties(accounts, rows.device)
            self._penalties.apply(rows, layout.penalised.places, [drafts[i] for i in layout.penalised.states])
        if layout.constrained.places is not None:
            entries = [(m, drafts[i]) for i in layout.constrained.states if (m := states[i].matcher) is not None]
            _bar(rows, layout.constrained.places, entries[0][0].vocabulary.fill(entries, rows.shape[1]))
        peaks, tokens = greatest(rows)  # A, A
        all_, some = layout.all_, layout.some
        if all_.places is not None and all_.temperature is not None:
            numbers = [[u] for i in all_.states for u in states[i].uniforms(1 + len(drafts[i]))]
            uniform = torch.tensor(numbers, dtype=torch.float64, device=rows.device)
            tokens[all_.places] = draw_all(_rows(rows, all_.places), all_.temperature, uniform)
        likely: Candidates | None = None
        if some.places is not None and some.temperature is not None:
            likely = candidates(_rows(rows, some.places), some.temperature, layout.n_candidates, layout.all_closed)
        return _Worked(rows, tokens, peaks > -torch.inf, likely)

    def _bar_of(self, logits: Tensor) -> Tensor | None:
        """Returns float32 [V] on the device of `logits` [R V], 0 for ids that may be chosen and -inf for others."""
        if len(self._forbidden) and (self._bar is None or self._bar.device != logits.device):
            bar = torch.zeros(logits.shape[1]).index_fill_(0, self._forbidden, -torch.inf)
            self._bar = bar.to(logits.device)
        return self._bar


class _Group(NamedTuple):
    """Some states, their places [G] among the worked rows (None: there are none), and where drawn their settings."""

    states: list[int]
    places: Tensor | None
    settings: Settings | None = None
    temperature: Tensor | None = None


class _Layout:
    """Where the rows of a batch lie, by what is to be done with them. Made anew when the batch is composed anew.

    Plain rows are greedy, without bias, penalty and grammar: they are never copied. The others are worked.
    """

    def __init__(self, states: Sequence[SamplerState], lens: Sequence[int], device: torch.device) -> None:
        self._of = tuple(states), tuple(lens), device
        self.firsts = list(accumulate(lens, initial=0))[:-1]
        self.n_rows = sum(lens)
        samplings = [state.sampling for state in states]
        owners = [i for i, n in enumerate(lens) for _ in range(n)]  # R
        penalised = [i for i, state in enumerate(states) if state.seen is not None]
        constrained = [i for i, state in enumerate(states) if state.matcher is not None]
        drawn = [i for i, sampling in enumerate(samplings) if not sampling.is_greedy]
        biased = [i for i, state in enumerate(states) if state.bias is not None]
        is_worked = {*penalised, *constrained, *drawn, *biased}
        self.worked_rows = [row for row, i in enumerate(owners) if i in is_worked]
        self.worked = torch.tensor(self.worked_rows, device=device) if self.worked_rows else None
        within = [owners[row] for row in self.worked_rows]
        self.biased = [(i, first := within.index(i), first + lens[i]) for i in biased]  # their rows lie together

        def group(members: list[int], is_drawn: bool) -> _Group:
            chosen = set(members)
            places = [place for place, i in enumerate(within) if i in chosen]
            if not places:
                return _Group([], None)
            where = torch.tensor(places, device=device)
            if not is_drawn:
                return _Group(members, where)
            settings = Settings.of([samplings[within[place]] for place in places])
            return _Group(members, where, settings, settings.device_temperature(device))

        self.penalised, self.constrained = group(penalised, False), group(constrained, False)
        self.all_ = group([i for i in drawn if keeps_all(samplings[i])], True)
        self.some = group([i for i in drawn if not keeps_all(samplings[i])], True)
        top_k = max((samplings[i].top_k for i in self.some.states), default=0)
        self.n_candidates = CANDIDATES[0] if top_k < CANDIDATES[0] else CANDIDATES[1]
        self.all_closed = all(is_closed(samplings[i]) for i in self.some.states)
        self.reporting = [(row, n) for row, i in enumerate(owners) if (n := samplings[i].n_logprobs) is not None]

    def serves(self, states: Sequence[SamplerState], lens: Sequence[int], device: torch.device) -> bool:
        own, own_lens, own_device = self._of
        same = len(own) == len(states) and all(a is b for a, b in zip(own, states, strict=True))
        return same and own_lens == tuple(lens) and own_device == device


class _Worked(NamedTuple):
    """Rows that were changed or drawn. rows [A V], tokens [A], is_open (some token is allowed) bool [A]; candidates of
    those that keep some tokens only, whose tokens are not drawn yet.
    """

    rows: Tensor
    tokens: Tensor
    is_open: Tensor
    candidates: Candidates | None


class _Found(NamedTuple):
    """A step's results on the host: tokens [R], is_open [A], and candidates as `drawing.pick` takes them."""

    tokens: list[int]
    is_open: list[bool]
    candidates: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]] | None


def _rows(rows: Tensor, places: Tensor) -> Tensor:
    """Returns the `places` of `rows`; `rows` itself where these are all."""
    return rows if len(places) == len(rows) else rows[places]


def _bar(rows: Tensor, places: Tensor, bits: Tensor) -> None:
    """Makes -inf of all entries of the rows `places` [G] of `rows` [A V] whose bit in `bits` uint8 [G V/8] is 0.

    By adding entries of a table, which takes a tenth of the time of a masked fill.
    """
    byte = torch.arange(256, device=rows.device)[:, None] >> torch.arange(8, device=rows.device)  # 256 8
    table = torch.zeros(256, 8, device=rows.device).masked_fill_(byte & 1 == 0, -torch.inf)
    barred = table.index_select(0, bits.to(rows.device).flatten().int()).view(len(bits), -1)  # G V
    rows.index_add_(0, places, barred[:, : rows.shape[1]])


def _to_host(tokens: Tensor, peaks: Tensor, worked: _Worked | None) -> _Found:
    """Copies all results in one go, as float64, which holds ids and float32 exactly."""
    parts = [tokens, peaks]
    if worked is not None:
        parts += [worked.is_open, *(worked.candidates or ())]
    elif tokens.device.type == "cpu":  # the shortest way: a step of greedy rows alone is over in no time
        _check_finite(peaks.tolist())
        return _Found(tokens.tolist(), [], None)
    numbers = torch.cat([part.flatten().double() for part in parts]).cpu().numpy()
    ends = list(accumulate(part.numel() for part in parts))
    chosen, peak, *others = (
        piece.reshape(part.shape) for piece, part in zip(np.split(numbers, ends), parts, strict=False)
    )
    _check_finite(peak.tolist())
    is_open = others[0].astype(bool).tolist() if others else []
    likely = (others[1], others[2].astype(np.int64), others[3]) if len(others) > 1 else None
    return _Found(chosen.astype(np.int64).tolist(), is_open, likely)


def _check_finite(peaks: Sequence[float]) -> None:
    if not all(map(math.isfinite, peaks)):
        raise WeightsError("logits are not finite: check the checkpoint, or load it with dtype float32 or bfloat16")


def _pick_some(found: _Found, worked: _Worked, layout: _Layout, uniform: NDArray[np.float64]) -> None:
    """Draws in `found` the tokens of rows that keep some only; looks for more candidates where it has to."""
    group, V = layout.some, worked.rows.shape[1]
    assert found.candidates is not None and group.settings is not None and group.places is not None
    picked = pick(*found.candidates, group.settings, uniform, layout.n_candidates >= V)
    places = group.places.tolist()
    for i, (place, token, is_sure) in enumerate(
        zip(places, picked.tokens.tolist(), picked.is_sure.tolist(), strict=True)
    ):
        if not is_sure and found.is_open[place]:
            settings = group.settings.rows(i, i + 1)
            token = _pick_one(worked.rows[place : place + 1], settings, uniform[i : i + 1])
        found.tokens[layout.worked_rows[place]] = token


def _pick_one(row: Tensor, settings: Settings, uniform: NDArray[np.float64]) -> int:
    """Returns a token of `row` [1 V] that keeps many."""
    V, temperature = row.shape[1], settings.device_temperature(row.device)
    for k in (CANDIDATES[1], V):
        logits, ids, share = (part.cpu().numpy() for part in candidates(row, temperature, k, False))
        picked = pick(logits.astype(np.float64), ids, share.astype(np.float64), settings, uniform, k >= V)
        if picked.is_sure[0]:
            break
    return int(picked.tokens[0])


def _logprobs(logits: Tensor, tokens: Sequence[int], layout: _Layout) -> list[TokenLogprobs | None]:
    """Returns what each row asked for: nothing, the chosen token, or also its most probable tokens."""
    reported: list[TokenLogprobs | None] = [None] * layout.n_rows
    if not layout.reporting:
        return reported
    rows = torch.tensor([row for row, _ in layout.reporting], device=logits.device)
    chosen = torch.tensor([[tokens[row]] for row, _ in layout.reporting], device=logits.device)  # Q 1
    most = min(max(n for _, n in layout.reporting), logits.shape[1])
    pieces = []
    n = rows_at_once(logits)
    for piece, own in zip(torch.split(rows, n), torch.split(chosen, n), strict=True):
        logprobs = logits[piece].log_softmax(dim=-1)  # Q V
        best = greatest_k(logprobs, most) if most else Ranked(logprobs[:, :0], logprobs[:, :0])
        pieces.append(torch.cat([logprobs.gather(1, own).double(), best.ids.double(), best.values.double()], dim=1))
    for (row, n_wanted), (own, *best) in zip(layout.reporting, torch.cat(pieces).tolist(), strict=True):
        top = zip(best[:most][:n_wanted], best[most:][:n_wanted], strict=True)
        reported[row] = TokenLogprobs(own, tuple((int(id_), value) for id_, value in top))
    return reported
