"""Who runs in the next step, with how many tokens: `plan`.

In: sequences that wait or run, each with a rank (`sequence`), and the blocks. Out: turns. Decoding goes on in every
step; what the step's budget leaves goes to prompts, by rank. Blocks are given as they are needed: when there are none,
the lowest-ranked sequence gives all its own back and waits, to go on later from what is still remembered of it. The
highest-ranked one can have everything, and everything is enough for it (`Engine.add` sees to that), so it always goes
on; ranks never change, so everybody is highest one day, and all that is accepted finishes.
Not here: the forward, sampling, when a sequence ends.
"""

from bisect import insort
from collections.abc import Sequence as Seq
from typing import NamedTuple

from puna.engine.blocks import KINDS, Blocks, Kind
from puna.engine.sequence import Sequence


class Turn(NamedTuple):
    """A sequence reads its next `n_new` ids in this step, then `drafts`, which are only guesses of what follows."""

    sequence: Sequence
    n_new: int
    drafts: tuple[int, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Says whether the sequence has then read all it knows, so that its next token can be chosen."""
        return self.n_new == self.sequence.n_unread


class Scheduler:
    """Sequences by rank, those that run and those that wait. Only the running hold blocks."""

    def __init__(self, blocks: Blocks, *, max_step_tokens: int, max_sequences: int) -> None:
        self.blocks = blocks
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.running: list[Sequence] = []  # both by rank
        self.waiting: list[Sequence] = []
        self.n_preempted = 0
        self.n_prompt_tokens = 0
        self.n_cached_tokens = 0

    @property
    def n_running(self) -> int:
        """Samples that have begun."""
        return sum(len(sequence.samplers) for sequence in self.running)

    @property
    def n_waiting(self) -> int:
        """Samples that have not begun, or were preempted."""
        return sum(len(sequence.samplers) for sequence in self.waiting)

    def wait(self, sequence: Sequence) -> None:
        """Queues a sequence that holds no blocks."""
        insort(self.waiting, sequence, key=lambda each: each.rank)

    def join(self, sequence: Sequence) -> None:
        """Lets a sequence run that has its blocks."""
        insort(self.running, sequence, key=lambda each: each.rank)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence wherever it is and takes its blocks back."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.blocks.close(sequence.table)

    def plan(self) -> list[Turn]:
        """Returns this step's turns, decoding ones first, with blocks for all their tokens. Starts and preempts."""
        self._start()
        budget = self.max_step_tokens - sum(sequence.is_decoding for sequence in self.running)
        turns, place = [], 0
        while place < len(self.running):  # the end of the list may give way on the way
            sequence = self.running[place]
            place += 1
            wanted = 1 if sequence.is_decoding else self._piece(sequence, budget, self.running[place:])
            while wanted and len(self.running) > place and not self.blocks.room(sequence.table, 1):
                self._preempt(self.running[-1])
            n_new = self.blocks.room(sequence.table, wanted)
            if n_new:
                self.blocks.grow(sequence.table, n_new)
                budget -= 0 if sequence.is_decoding else n_new
                turns.append(Turn(sequence, n_new))
        return sorted(turns, key=lambda turn: not turn.sequence.is_decoding)

    def with_drafts(self, turns: Seq[Turn], drafts: Seq[tuple[int, ...]]) -> list[Turn]:
        """Returns the turns with as many of the drafts beside them as budget and blocks leave, and blocks for those."""
        budget = self.max_step_tokens - sum(turn.n_new for turn in turns)
        given = []
        for (sequence, n_new, _), guesses in zip(turns, drafts, strict=True):
            n = min(len(guesses), budget)
            n = max(self.blocks.room(sequence.table, n_new + n) - n_new, 0)
            self.blocks.grow(sequence.table, n_new + n)
            budget -= n
            given.append(Turn(sequence, n_new, guesses[:n]))
        return given

    def check_integrity(self) -> None:
        """Raises AssertionError unless lists, tables and pools agree; call it between steps."""
        for sequences in (self.running, self.waiting):
            ranks = [sequence.rank for sequence in sequences]
            assert ranks == sorted(set(ranks)), "sequences are not by rank, or one is there twice"
        assert self.n_running <= self.max_sequences, "more samples run than may"
        assert all(sequence.n_unread > 0 for sequence in (*self.running, *self.waiting)), "a sequence has nothing to do"
        assert not any(sequence.table.length for sequence in self.waiting), "who waits holds blocks"
        self.blocks.check_integrity(sequence.table for sequence in (*self.running, *self.waiting))

    def _piece(self, sequence: Sequence, budget: int, behind: Seq[Sequence]) -> int:
        """Returns how many ids a sequence reads: a text too long for this step leaves half of it to those behind."""
        if sequence.n_unread <= budget:
            return sequence.n_unread
        asked = sum(each.n_unread for each in behind if not each.is_decoding)
        return budget - min(budget // 2, asked)

    def _start(self) -> None:
        """Starts waiting sequences by rank, while there is room; who outranks a running one takes its place.

        A text that begins like one that is just being read lets that read first, and others overtake.
        """
        for sequence in list(self.waiting):
            n_samples = len(sequence.samplers)
            if self._is_being_read(sequence):
                continue
            is_last = not self.running or self.running[-1].rank < sequence.rank
            if is_last and not self._has_room(sequence):
                return
            while self.n_running + n_samples > self.max_sequences:
                if self.running[-1].rank < sequence.rank:
                    return
                self._preempt(self.running[-1])
            self.waiting.remove(sequence)
            block_len = self.blocks.layout.block_len
            n_blocks = (len(sequence.ids) - 1) // block_len  # something must be left to read
            sequence.table = self.blocks.open(sequence.keys(len(sequence.ids), block_len)[:n_blocks])
            if sequence.n_cached is None:
                sequence.n_cached = sequence.table.length
                self.n_prompt_tokens += len(sequence.ids)
                self.n_cached_tokens += sequence.n_cached
            self.join(sequence)

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Says whether the first block that a text would have to read is one that a higher-ranked text reads next."""
        block_len = self.blocks.layout.block_len
        keys = sequence.keys(len(sequence.ids), block_len)
        n = self.blocks.remembered(keys)
        return n < (len(sequence.ids) - 1) // block_len and any(
            other.n_unread > 1
            and other.rank < sequence.rank
            and other.table.length < (n + 1) * block_len
            and keys[n] in other.keys(len(other.ids), block_len)[n : n + 1]
            for other in self.running
        )

    def _has_room(self, sequence: Sequence) -> bool:
        """Says whether a sequence can read all it knows beside those that run, with a block for everybody to go on.

        Without this, two that do not fit together would push each other out again and again.
        """
        if not self.running:
            return True
        layout, available = self.blocks.layout, self.blocks.available
        shared = self.blocks.shared(sequence.keys(len(sequence.ids), layout.block_len))

        def lacking(text: Sequence, kind: Kind, n_held: int) -> int:
            return max(layout.peak(len(text.ids) + layout.block_len).of(kind) - n_held, 0)

        return all(
            lacking(sequence, kind, shared.of(kind))
            + sum(lacking(other, kind, len(other.table.blocks(kind))) for other in self.running)
            <= available.of(kind)
            for kind in KINDS
        )

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.close(sequence.table)
        self.wait(sequence)
        self.n_preempted += 1
