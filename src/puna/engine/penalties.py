"""Penalties on tokens that were seen: repetition, frequency and presence, of one row and of a batch.

In: logits, and which tokens a sequence has seen. Out: the logits of those tokens, changed in place. `Seen` is the
account of one sequence; `Penalties` holds the accounts of a batch as one table on the device, which follows them token
by token, so that a step moves no more than its new tokens and computes with distinct seen tokens only.
Not here: everything else that makes a choice (`sampler`).

Source: repetition, Keskar et al. 2019 (arXiv 1909.05858, section 4.1), the negative side as in transformers; presence
and frequency, the OpenAI API reference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.engine.request import Sampling


class Seen:
    """The distinct tokens that one sequence has seen, one slot each, and how often each was written.

    Tokens of the prompt come first; they count only for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self.sampling = sampling
        self.tokens = list(dict.fromkeys(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self.counts = [0] * len(self.tokens)
        self.n_prompt = len(self.tokens)
        self.slots = {token: slot for slot, token in enumerate(self.tokens)}
        self.history: list[int] = []  # the slot of every token that was written

    def record(self, token: int) -> None:
        """Counts a token that was written."""
        slot = self.slots.setdefault(token, len(self.tokens))
        if slot == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(0)
        self.counts[slot] += 1
        self.history.append(slot)

    def penalise(self, logits: Tensor) -> None:
        """Applies the penalties to one row of logits [V], in place: the plain twin of `Penalties.apply`."""
        seen = torch.tensor(self.tokens, device=logits.device, dtype=torch.long)
        penalty = self.sampling.repetition_penalty
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        counts = torch.tensor(self.counts, device=logits.device, dtype=logits.dtype)
        written = counts > 0
        logits[seen[written]] -= self.sampling.frequency_penalty * counts[written] + self.sampling.presence_penalty


class Penalties:
    """What some sequences have seen, as a table: ids int64, counts float32 and in_prompt bool, each [P S]."""

    def __init__(self, accounts: Sequence[Seen], device: torch.device) -> None:
        self._accounts = tuple(accounts)
        capacity = 2 * max(32, *(len(seen.tokens) for seen in accounts))
        pads = [[0] * (capacity - len(seen.tokens)) for seen in accounts]
        self._ids = torch.tensor([seen.tokens + pad for seen, pad in zip(accounts, pads, strict=True)], device=device)
        counts = [seen.counts + pad for seen, pad in zip(accounts, pads, strict=True)]
        self._counts = torch.tensor(counts, dtype=torch.float32, device=device)
        n_prompt = torch.tensor([[seen.n_prompt] for seen in accounts], device=device)
        self._in_prompt = torch.arange(capacity, device=device) < n_prompt
        samplings = [seen.sampling for seen in accounts]
        factors = [[s.repetition_penalty, s.frequency_penalty, s.presence_penalty] for s in samplings]
        self._factors = torch.tensor(factors, dtype=torch.float32, device=device)  # P 3
        self._n_followed = [len(seen.history) for seen in accounts]

    def serves(self, accounts: Sequence[Seen], device: torch.device) -> bool:
        """Returns whether this table is of these accounts and has room for what they have seen since."""
        return (
            device == self._ids.device
            and len(accounts) == len(self._accounts)
            and all(a is b for a, b in zip(accounts, self._accounts, strict=True))
            and all(len(seen.tokens) <= self._ids.shape[1] for seen in accounts)
        )

    def apply(self, logits: Tensor, places: Tensor, drafts: Sequence[Sequence[int]]) -> None:
        """Penalises the rows `places` int64 [R] of `logits` [A V], in place: 1 + len(draft) for each account.

        The row behind a draft counts it and those before it as written.
        """
        self._follow()
        n_slots = [len(seen.tokens) for seen in self._accounts]
        ids, counts, in_prompt, factors = self._ids, self._counts, self._in_prompt, self._factors
        if any(drafts):
            owners = [i for i, draft in enumerate(drafts) for _ in range(1 + len(draft))]
            ids, counts, in_prompt, n_slots = self._with_drafts(owners, drafts)
            factors = factors[owners]
        # Slots that a row does not use stand for its first one, which is then written several times, always the same.
        slots = torch.arange(max(1, *n_slots), device=logits.device)
        slots = torch.where(slots < torch.tensor(n_slots, device=logits.device)[:, None], slots, 0)  # R S
        ids, counts, in_prompt = (x.gather(1, slots) for x in (ids, counts, in_prompt))  # R S
        repetition, frequency, presence = torch.split(factors, 1, dim=1)  # R 1
        values, written = logits[places[:, None], ids], counts > 0  # R S
        repeated = torch.where(values > 0, values / repetition, values * repetition)
        values = torch.where(in_prompt | written, repeated, values)
        logits[places[:, None], ids] = torch.where(written, values - (frequency * counts + presence), values)

    def _follow(self) -> None:
        """Enters the tokens that were recorded since the last call."""
        new = [
            (row, slot, seen.tokens[slot], seen.counts[slot])
            for row, (seen, n) in enumerate(zip(self._accounts, self._n_followed, strict=True))
            for slot in set(seen.history[n:])
        ]
        self._n_followed = [len(seen.history) for seen in self._accounts]
        if new:
            row, slot, id_, count = torch.tensor(new, device=self._ids.device).unbind(1)
            self._ids[row, slot] = id_
            self._counts[row, slot] = count.to(self._counts.dtype)

    def _with_drafts(
        self, owners: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Returns ids, counts and in_prompt [R S] of each row with the drafts before it, and its number of slots."""
        entries: list[tuple[int, int, int]] = []  # row, slot and id of each draft that a row counts
        n_slots: list[int] = []
        for seen, draft in zip(self._accounts, drafts, strict=True):
            more: dict[int, int] = {}
            for n in range(1 + len(draft)):
                for id_ in draft[:n]:
                    slot = seen.slots.get(id_, -1)
                    slot = slot if slot >= 0 else more.setdefault(id_, len(seen.tokens) + len(more))
                    entries.append((len(n_slots), slot, id_))
                n_slots.append(len(seen.tokens) + len(more))
        room = (0, max(0, max(n_slots) - self._ids.shape[1]))
        ids, counts, in_prompt = (F.pad(x[owners], room) for x in (self._ids, self._counts, self._in_prompt))
        at, slots, tokens = torch.tensor(entries, device=ids.device).unbind(1)
        ids[at, slots] = tokens
        counts.index_put_((at, slots), counts.new_ones(()), accumulate=True)
        return ids, counts, in_prompt, n_slots
