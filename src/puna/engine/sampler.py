"""Logits to the next tokens of every sequence in a batch.

In: logits [R V], one row for each sequence and one more behind each of its drafts, and what each sequence remembers.
Out: the tokens that follow, with log-probabilities on request.

Order, the one vLLM uses (`vllm/v1/sample/sampler.py`): log-probabilities are taken from the untouched logits; then ids
are forbidden, `penalties` applied, and what the `grammar` does not allow is barred; greedy rows take their arg-max
here; then temperature, min_p, top_k, top_p, each on what the one before left; then one random number per row picks a
token (`drawing`). transformers applies min_p last instead of first, which differs only where min_p and top_p are both
set.

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

import random
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor

from puna.engine.drawing import Settings, draw_all, draw_some, is_closed, keeps_all
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
        self._random = random.Random(None if sampling.seed is None else sampling.seed + sample)
        self._ahead: deque[float] = deque()  # random numbers that were looked at and not used up

    def record(self, token: int) -> None:
        """Counts a chosen token: towards the penalties, in the grammar, and its random number as used up."""
        if not self.sampling.is_greedy:
            self.uniforms(1)
            self._ahead.popleft()
        if self.seen is not None:
            self.seen.record(token)
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
        self._forbidden = frozenset(forbidden)
        self._forbidden_ids = torch.tensor(sorted(self._forbidden), dtype=torch.long)
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
        peaks, tokens = greatest(logits)  # R, R
        worked: _Worked | None = None
        if layout.worked is not None:
            worked = self._work(self._copied(logits, layout.worked), layout, states, drafts)
            tokens = tokens.index_copy(0, layout.worked, worked.tokens)
        found = _to_host(tokens, peaks, worked, _report(logits, tokens, layout))
        if self._mend(found, logits, layout, worked):
            tokens = torch.tensor(found.tokens, device=logits.device)
            found = _to_host(tokens, peaks, worked, _report(logits, tokens, layout))
        barred = {layout.worked_rows[i] for i, is_open in enumerate(found.is_open) if not is_open}
        logprobs = _read_report(found.report, layout)
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
        self, rows: Tensor, layout: "_Layout", states: Sequence[SamplerState], drafts: Sequence[Sequence[int]]
    ) -> "_Worked":
        """Changes `rows` [A V], which it may keep, as their sequences ask, and chooses a token of each."""
        if self._forbidden:
            rows.index_fill_(1, self._forbidden_ids.to(rows.device), -torch.inf)
        if layout.penalised.places is not None:
            accounts = [seen for i in layout.penalised.states if (seen := states[i].seen) is not None]
            if self._penalties is None or not self._penalties.serves(accounts, rows.device):
                self._penalties = Penalties(accounts, rows.device)
            self._penalties.apply(rows, layout.penalised.places, [drafts[i] for i in layout.penalised.states])
        if layout.constrained.places is not None:
            entries = [(m, drafts[i]) for i in layout.constrained.states if (m := states[i].matcher) is not None]
            _bar(rows, layout.constrained.places, entries[0][0].vocabulary.fill(entries, rows.shape[1]))
        peaks, tokens = greatest(rows)  # A, A
        is_sure = torch.ones_like(tokens, dtype=torch.bool)  # A
        all_, some = layout.all_, layout.some
        uniforms = [
            torch.tensor([[u] for i in g.states for u in states[i].uniforms(1 + len(drafts[i]))], dtype=torch.float64)
            for g in (all_, some)
        ]
        uniform_all, uniform_some = (u.to(rows.device) for u in uniforms)
        if all_.places is not None and all_.settings is not None:
            tokens[all_.places] = draw_all(_rows(rows, all_.places), all_.settings, uniform_all)
        if some.places is not None and some.settings is not None:
            some_rows = _rows(rows, some.places)
            drawn = draw_some(some_rows, some.settings, uniform_some, layout.n_candidates, layout.all_closed)
            tokens[some.places], is_sure[some.places] = drawn
        return _Worked(rows, tokens, is_sure, peaks > -torch.inf, uniform_some)

    def _mend(self, found: "_Found", logits: Tensor, layout: "_Layout", worked: "_Worked | None") -> bool:
        """Corrects in `found` the tokens that the fast ways could not tell. Returns whether there were any."""
        wrong = [row for row in layout.plain_rows if found.tokens[row] in self._forbidden] if self._forbidden else []
        for row in wrong:
            allowed = logits[row].index_fill(0, self._forbidden_ids.to(logits.device), -torch.inf)
            found.tokens[row] = int(allowed.argmax())
        unsure = [i for i, is_sure in enumerate(found.is_sure) if not is_sure and found.is_open[i]]
        for i in unsure:
            assert worked is not None and layout.some.settings is not None and layout.some.places is not None
            place = (layout.some.places == i).nonzero()[0]  # 1
            settings, uniform = layout.some.settings.rows(place), worked.uniform_some[place]
            for k in (*CANDIDATES[1:], logits.shape[1]):
                drawn = draw_some(worked.rows[i : i + 1], settings, uniform, k, layout.all_closed)
                if bool(drawn.is_sure):
                    break
            found.tokens[layout.worked_rows[i]] = int(drawn.tokens)
        return bool(wrong or unsure)


class _Group(NamedTuple):
    """Some states, their places [G] among the worked rows (None: there are none), and their settings where drawn."""

    states: list[int]
    places: Tensor | None
    settings: Settings | None = None


class _Layout:
    """Where the rows of a batch lie, by what is to be done with them. Made anew when the batch is composed anew.

    Plain rows are greedy, without penalty and grammar: they are never copied. The others are worked.
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
        is_worked = {*penalised, *constrained, *drawn}
        self.worked_rows = [row for row, i in enumerate(owners) if i in is_worked]
        self.plain_rows = [row for row, i in enumerate(owners) if i not in is_worked]
        self.worked = torch.tensor(self.worked_rows, device=device) if self.worked_rows else None
        within = [owners[row] for row in self.worked_rows]

        def group(members: list[int], is_drawn: bool) -> _Group:
            chosen = set(members)
            places = [place for place, i in enumerate(within) if i in chosen]
            if not places:
                return _Group([], None)
            settings = Settings.of([samplings[within[place]] for place in places], device) if is_drawn else None
            return _Group(members, torch.tensor(places, device=device), settings)

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
    """Rows that were changed or drawn. rows [A V], tokens [A], is_sure and is_open (some token is allowed) bool [A]."""

    rows: Tensor
    tokens: Tensor
    is_sure: Tensor
    is_open: Tensor
    uniform_some: Tensor


class _Found(NamedTuple):
    """A step's results on the host: tokens [R], is_sure and is_open of the worked rows, and log-probabilities."""

    tokens: list[int]
    is_sure: list[float]
    is_open: list[float]
    report: list[float]


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


def _to_host(tokens: Tensor, peaks: Tensor, worked: _Worked | None, report: Sequence[Tensor]) -> _Found:
    """Copies all results in one go, as float64, which holds ids and float32 exactly."""
    R, A = len(tokens), 0 if worked is None else len(worked.tokens)
    known = () if worked is None else (worked.is_sure, worked.is_open)
    numbers = torch.cat([x.flatten().double() for x in (tokens, peaks, *known, *report)]).tolist()
    if not all(peak - peak == 0 for peak in numbers[R : 2 * R]):
        raise WeightsError("logits are not finite: check the checkpoint, or load it with dtype float32 or bfloat16")
    rest = numbers[2 * R :]
    return _Found([int(token) for token in numbers[:R]], rest[:A], rest[A : 2 * A], rest[2 * A :])


def _report(logits: Tensor, tokens: Tensor, layout: _Layout) -> list[Tensor]:
    """Returns for the rows that report the log-probability of the token [Q 1], then ids [Q n], then log-probabilities
    [Q n] of the most probable ones, in pieces.
    """
    if not layout.reporting:
        return []
    rows = torch.tensor([row for row, _ in layout.reporting], device=logits.device)
    most = min(max(n for _, n in layout.reporting), logits.shape[1])
    chosen, ids, values = [], [], []
    for piece in torch.split(rows, rows_at_once(logits)):
        logprobs = logits[piece].log_softmax(dim=-1)  # Q V
        best = greatest_k(logprobs, most) if most else Ranked(logprobs[:, :0], logprobs[:, :0])
        chosen.append(logprobs.gather(1, tokens[piece][:, None]))
        ids.append(best.ids)
        values.append(best.values)
    return [*chosen, *ids, *values]


def _read_report(numbers: Sequence[float], layout: _Layout) -> list[TokenLogprobs | None]:
    """Returns what each row asked for: nothing, the chosen token, or also its most probable tokens."""
    reported: list[TokenLogprobs | None] = [None] * layout.n_rows
    Q = len(layout.reporting)
    most = (len(numbers) // Q - 1) // 2 if Q else 0
    ids, values = numbers[Q : Q + Q * most], numbers[Q + Q * most :]
    for i, (row, n) in enumerate(layout.reporting):
        place = slice(i * most, i * most + min(n, most))
        top = tuple((int(id_), value) for id_, value in zip(ids[place], values[place], strict=True))
        reported[row] = TokenLogprobs(numbers[i], top)
    return reported
