"""Who runs: by rank, within the budget, as far as blocks reach; the highest always goes on."""

import random
from collections.abc import Sequence as Seq

import pytest

from puna.engine.blocks import Blocks, Counts, Kind, Layout
from puna.engine.request import Request, Sampling
from puna.engine.sampler import SamplerState
from puna.engine.scheduler import Scheduler, Turn
from puna.engine.sequence import PATIENCE_SECONDS, Sequence, due_seconds

IROPE = Layout(block_len=2, chunk_len=8, has_global=True)


class Nothing:
    """A `Storage` that keeps nothing: no content is looked at here."""

    def copy(self, kind: Kind, source: int, target: int) -> None: ...

    def read(self, kind: Kind, block: int) -> bytes:
        return b""

    def write(self, kind: Kind, block: int, content: bytes) -> None: ...


def scheduler(n_blocks: Counts = Counts(100, 100), max_step_tokens: int = 20, max_sequences: int = 4) -> Scheduler:  # noqa: B008
    return Scheduler(Blocks(IROPE, n_blocks, Nothing()), max_step_tokens=max_step_tokens, max_sequences=max_sequences)


def text(
    number: int, n_ids: int, *, priority: int = 0, n: int = 1, now: float = 0.0, first: int | None = None
) -> Sequence:
    """Returns a sequence of a request that came at `now`, with ids that count up from `first`, or are like no other."""
    first = 100 * number if first is None else first
    request = Request(ids=list(range(first, first + n_ids)), n=n, priority=priority)
    samplers = {i: SamplerState(Sampling(), request.ids, i) for i in range(n)}
    return Sequence(number, request, due_seconds(request, now), samplers, 99, list(request.ids), None)


def settle(scheduler: Scheduler, turns: Seq[Turn], *, last: int = 99) -> None:
    """Does what the engine does behind a forward; everybody who has read all gets a token, and ends with `last`."""
    for sequence, n_new, _ in turns:
        scheduler.blocks.advance(sequence.table, n_new, sequence.keys(sequence.table.length + n_new, 2))
        if sequence.n_unread == 0:
            sequence.ids.append(7)
            if sequence.n_new_tokens == last:
                scheduler.remove(sequence)
    scheduler.check_integrity()


def taken(turns: Seq[Turn]) -> list[tuple[int, int]]:
    return [(turn.sequence.request_id, turn.n_new) for turn in turns]


def test_decoding_goes_on_and_prompts_share_what_is_left() -> None:
    plan = scheduler()
    plan.wait(text(1, 3))
    settle(plan, plan.plan())
    plan.wait(text(2, 50))
    plan.wait(text(3, 4))
    turns = plan.plan()
    assert taken(turns) == [(1, 1), (2, 15), (3, 4)]  # the long one leaves what the short one asks, at most half
    settle(plan, turns)
    plan.wait(text(4, 50))
    turns = plan.plan()
    assert taken(turns) == [(1, 1), (3, 1), (2, 9), (4, 9)]
    settle(plan, turns)
    turns = plan.plan()
    assert taken(turns) == [(1, 1), (3, 1), (2, 9), (4, 9)]
    settle(plan, turns)
    turns = plan.plan()
    assert taken(turns) == [(1, 1), (3, 1), (2, 17), (4, 1)]  # what ends in this step may take all


def test_samples_are_bounded_and_the_first_come_runs_first() -> None:
    plan = scheduler()
    for number, n in ((1, 2), (2, 1), (3, 2), (4, 1)):
        plan.wait(text(number, 3, n=n))
    assert taken(plan.plan()) == [(1, 3), (2, 3)]  # the third does not fit, and the fourth does not overtake it
    assert (plan.n_running, plan.n_waiting) == (3, 3)


def test_priority_overtakes_and_takes_the_place_of_the_last() -> None:
    plan = scheduler(max_sequences=2)
    for number in (1, 2, 3):
        plan.wait(text(number, 3))
    settle(plan, plan.plan())
    plan.wait(text(4, 3, priority=-1))
    assert taken(plan.plan()) == [(1, 1), (4, 3)]
    assert [sequence.request_id for sequence in plan.waiting] == [2, 3]


def test_who_waits_long_enough_comes_before_any_priority() -> None:
    low = text(1, 3, priority=3, now=0.0)
    later = [text(2 + i, 3, priority=-3, now=i * PATIENCE_SECONDS) for i in range(9)]
    order = [sequence.request_id for sequence in sorted([low, *later], key=lambda each: each.rank)]
    assert order.index(1) == 6  # six steps of priority are six patiences


def test_a_deadline_brings_forward() -> None:
    assert due_seconds(Request(ids=[1], deadline_seconds=3.0), 1.0) == 3.0
    assert due_seconds(Request(ids=[1], deadline_seconds=300.0), 1.0) == 1.0 + PATIENCE_SECONDS
    assert due_seconds(Request(ids=[1], priority=2), 1.0) == 1.0 + 3 * PATIENCE_SECONDS


def test_without_blocks_the_lowest_rank_makes_room_and_goes_on_later() -> None:
    plan = scheduler(Counts(7, 8))
    plan.wait(text(1, 5))
    plan.wait(text(2, 3))
    settle(plan, plan.plan())
    for _ in range(8):
        turns = plan.plan()
        settle(plan, turns)
        if plan.n_preempted:
            break
    assert taken(turns) == [(1, 1)]
    (waiting,) = plan.waiting
    assert (waiting.request_id, waiting.table.length) == (2, 0)
    n_known = len(waiting.ids)
    assert taken(plan.plan()) == [(1, 1)]  # it does not come back only to be pushed out again
    plan.remove(plan.running[0])
    (turn,) = plan.plan()
    assert turn.sequence is waiting
    assert waiting.table.length + turn.n_new == n_known


def test_a_lower_rank_takes_only_what_is_left() -> None:
    plan = scheduler(Counts(8, 8))
    plan.wait(text(1, 10))
    plan.wait(text(2, 10))
    assert taken(plan.plan()) == [(1, 10)]


def test_texts_that_share_a_prefix_run_together_where_they_would_not_fit_apart() -> None:
    for is_shared in (True, False):
        plan = scheduler(Counts(12, 12))
        plan.wait(text(1, 17, first=0))
        settle(plan, plan.plan())
        plan.wait(text(2, 18, first=0 if is_shared else 40))
        assert taken(plan.plan()) == ([(1, 1), (2, 2)] if is_shared else [(1, 1)])


def test_texts_that_begin_alike_read_their_beginning_once() -> None:
    plan = scheduler(max_step_tokens=10)
    for number, n_ids in ((1, 25), (2, 27), (3, 3), (4, 26)):
        plan.wait(text(number, n_ids, first=None if number == 3 else 0))
    read: dict[int, int] = {}
    for _ in range(9):
        turns = plan.plan()
        for number, n_new in taken(turns):
            read[number] = read.get(number, 0) + (0 if number in read and n_new == 1 else n_new)
        settle(plan, turns)
    assert read == {1: 25, 2: 3, 3: 3, 4: 2}


def test_a_text_reads_on_chunk_by_chunk_where_blocks_are_short() -> None:
    plan = scheduler(Counts(30, 4))
    plan.wait(text(1, 29))
    read = []
    for _ in range(4):
        turns = plan.plan()
        read += taken(turns)
        settle(plan, turns)
    assert read == [(1, 8), (1, 8), (1, 8), (1, 5)]


@pytest.mark.parametrize("seed", range(20))
def test_everything_that_fits_alone_finishes(seed: int) -> None:
    chooser = random.Random(seed)
    plan = scheduler(Counts(12, chooser.choice([4, 5, 7])), max_sequences=5)
    for number in range(1, 30):
        start = chooser.choice([0, 0, None])  # some begin alike
        plan.wait(text(number, chooser.randint(1, 20), priority=chooser.randint(-2, 2), first=start))
    for _ in range(3000):
        if not plan.waiting and not plan.running:
            break
        turns = plan.plan()
        assert turns[0].sequence is plan.running[0] or plan.running[0] in [turn.sequence for turn in turns]
        settle(plan, turns, last=4)
    assert not plan.waiting
    assert not plan.running
    plan.check_integrity()
