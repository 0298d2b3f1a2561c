"""A cache of experts never takes more than it may, never touches what is in use, and never leaves anybody waiting."""

import gc
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from puna.errors import CapacityError, WeightsError
from puna.kernels.arriving_experts import Arrival
from puna.offload.cache import ExpertCache, Traffic
from puna.offload.store import HostStore, Key, Layers
from tests.offload.conftest import SOURCES, HeldStore, make_store, numbered

EXPERTS = Layers((1, 3), 4)
PATIENCE_SECONDS = 20  # a test that would hang fails instead


def cache_of(n_places: int, experts: Layers = EXPERTS) -> ExpertCache:
    store = HostStore(experts, numbered, locked=False)
    return ExpertCache(store, n_places * store.record.n_bytes)


def is_right(layer: int, arrival: Arrival) -> bool:
    wanted = numbered(Key(layer, arrival.expert))
    return torch.equal(arrival.gate_up[0], wanted.gate_up) and torch.equal(arrival.down[0], wanted.down)


def take(cache: ExpertCache, layer: int, *experts: int) -> list[int]:
    """Visits experts, checks what comes, and returns them in the order in which they came."""
    order = []
    for arrival in cache.visit(layer, experts):
        assert is_right(layer, arrival)
        order.append(arrival.expert)
    return order


@pytest.fixture
def held() -> Iterator[HeldStore]:
    store = HeldStore(EXPERTS)
    yield store
    store.permits.release(1000)  # lets a thread that still reads go on to its end


def held_cache(store: HeldStore, n_places: int) -> ExpertCache:
    return ExpertCache(store, n_places * store.record.n_bytes)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("n_places", [1, 2, 3, 8])
def test_whatever_is_asked_for_comes_once_and_right(source: str, n_places: int, tmp_path: Path) -> None:
    store = make_store(source, tmp_path, EXPERTS, numbered)
    cache = ExpertCache(store, n_places * store.record.n_bytes)
    choice = random.Random(n_places)
    for _ in range(60):
        layer, experts = choice.choice((1, 3)), choice.sample(range(4), choice.randint(0, 4))
        assert sorted(take(cache, layer, *experts)) == sorted(experts)
        cache.expect(choice.choice((1, 3)), choice.sample(range(4), 2))
    assert cache.traffic.n_asked > 0
    cache.close()


def test_the_cache_takes_no_more_bytes_than_it_may_and_no_more_than_there_are() -> None:
    store = HostStore(EXPERTS, numbered, locked=False)
    size = store.record.n_bytes
    assert ExpertCache(store, 3 * size + size // 2).n_bytes == 3 * size
    assert ExpertCache(store, 1000 * size).n_bytes == 8 * size
    with pytest.raises(CapacityError, match=rf"expert_cache_bytes is {size - 1}: one expert takes {size}"):
        ExpertCache(store, size - 1)


def test_what_is_there_comes_before_what_must_be_fetched(held: HeldStore) -> None:
    cache = held_cache(held, 4)
    held.permits.release()
    assert take(cache, 1, 2) == [2]
    visit = cache.visit(1, [0, 2, 3])
    assert next(visit).expert == 2  # while nothing can be read
    held.permits.release(2)
    assert sorted(arrival.expert for arrival in visit) == [0, 3]
    assert cache.traffic == Traffic(n_hits=1, n_misses=3, read_bytes=3 * held.record.n_bytes)


def test_what_is_used_most_stays() -> None:
    cache = cache_of(2)
    for expert in (0, 0, 0, 1, 2, 3, 1, 2):
        take(cache, 1, expert)
    before = cache.traffic
    take(cache, 1, 0)
    assert cache.traffic.n_hits == before.n_hits + 1


def test_old_uses_fade() -> None:
    cache = cache_of(2)
    for expert in [0] * 50 + [1] * 200 + [2, 3, 2, 3]:
        take(cache, 1, expert)
    before = cache.traffic
    take(cache, 1, 1)
    assert cache.traffic.n_hits == before.n_hits + 1
    for expert in [2, 3] * 100:
        take(cache, 1, expert)
    before = cache.traffic
    take(cache, 1, 2, 3)
    assert cache.traffic.n_hits == before.n_hits + 2


def test_heat_stays_a_number_over_many_steps() -> None:
    cache = cache_of(2, Layers((1,), 4))
    for step in range(20_000):  # beyond what 2 ** (step / 16) could hold
        cache._shelf._warm([Key(1, step % 4)])
    assert take(cache, 1, 0, 1) and all(0 < heat < float("inf") for heat in cache._shelf._heat.values())


def test_what_is_expected_is_fetched_while_nobody_waits(held: HeldStore) -> None:
    cache = held_cache(held, 4)
    held.permits.release(2)
    cache.expect(3, [2, 0])
    for _ in range(2):
        assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    assert held.begun == [Key(3, 2), Key(3, 0)]
    assert sorted(take(cache, 3, 0, 2)) == [0, 2]
    traffic = cache.traffic
    assert (traffic.n_foreseen, traffic.n_guessed, traffic.n_misses) == (2, 2, 0)


def test_a_guess_is_given_up_for_what_is_needed(held: HeldStore) -> None:
    cache = held_cache(held, 2)
    cache.expect(3, [1])
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    visit = cache.visit(1, [0])  # the guess is being read, and nothing is let through
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    assert held.begun == [Key(3, 1), Key(1, 0)]
    held.permits.release()
    assert next(visit).expert == 0
    assert cache.traffic.n_given_up == 1


def test_a_guess_that_turns_out_right_is_not_read_twice(held: HeldStore) -> None:
    cache = held_cache(held, 2)
    cache.expect(3, [1])
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    visit = cache.visit(3, [1])
    held.permits.release()
    assert next(visit).expert == 1
    assert held.begun == [Key(3, 1)]
    assert cache.traffic == Traffic(n_late=1, n_foreseen=1, n_guessed=1, read_bytes=held.record.n_bytes)


def test_a_new_guess_replaces_the_old_one(held: HeldStore) -> None:
    cache = held_cache(held, 4)
    cache.expect(3, [0, 1])
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    cache.expect(3, [2])
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    assert held.begun == [Key(3, 0), Key(3, 2)]  # the first one was given up, the second one never begun


def test_guesses_never_push_each_other_out(held: HeldStore) -> None:
    cache = held_cache(held, 2)
    held.permits.release(3)
    cache.expect(3, [0, 1, 2])
    for _ in range(2):
        assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    assert sorted(take(cache, 3, 0, 1)) == [0, 1]
    assert held.begun[:2] == [Key(3, 0), Key(3, 1)]


def test_an_expert_that_is_computed_with_keeps_its_place() -> None:
    """Six threads and two places: what a thread holds is what it asked for, as long as it holds it."""
    cache, faults = cache_of(2), []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(60):
            layer = choice.choice((1, 3))
            for arrival in cache.visit(layer, choice.sample(range(4), choice.randint(1, 4))):
                cache.expect(4 - layer, choice.sample(range(4), 2))
                for _ in range(3):
                    if not is_right(layer, arrival):
                        faults.append((seed, layer, arrival.expert))

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert not faults


def test_all_places_are_free_again_after_a_visit_that_ended_early() -> None:
    cache = cache_of(2)
    for _ in range(5):
        visit = cache.visit(1, [0, 1, 2, 3])
        next(visit)
        visit.close()
    assert sorted(take(cache, 3, 0, 1, 2, 3)) == [0, 1, 2, 3]


def test_a_fault_while_fetching_is_raised_where_the_expert_was_asked_for() -> None:
    store = HeldStore(EXPERTS, damaged=frozenset({Key(1, 2)}))
    store.permits.release(1000)
    cache = held_cache(store, 2)
    for _ in range(3):
        with pytest.raises(WeightsError, match="expert 2 of layer 1: damaged"):
            take(cache, 1, 0, 2)
        assert sorted(take(cache, 1, 0, 1, 3)) == [0, 1, 3]  # nothing else is lost


def test_a_fault_in_a_guess_is_raised_only_when_the_expert_is_needed() -> None:
    store = HeldStore(EXPERTS, damaged=frozenset({Key(1, 2)}))
    store.permits.release(1000)
    cache = held_cache(store, 2)
    cache.expect(1, [2])
    assert store.has_begun.acquire(timeout=PATIENCE_SECONDS)
    assert take(cache, 3, 2) == [2]
    with pytest.raises(WeightsError, match="expert 2 of layer 1: damaged"):
        take(cache, 1, 2)


def test_whoever_waits_for_a_cache_that_is_closed_is_told(held: HeldStore) -> None:
    cache, told = held_cache(held, 2), []
    visit = cache.visit(1, [0])

    def wait() -> None:
        try:
            next(visit)
        except CapacityError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    cache.close()
    thread.join(PATIENCE_SECONDS)
    assert told == ["the cache of experts is closed; load the model again"] and held.is_closed


def test_the_fetching_thread_ends_with_the_cache(held: HeldStore) -> None:
    before = set(threading.enumerate())
    cache = held_cache(held, 2)
    (thread,) = set(threading.enumerate()) - before
    cache.expect(1, [0])  # in the middle of reading
    assert held.has_begun.acquire(timeout=PATIENCE_SECONDS)
    del cache
    gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive() and held.is_closed


def test_the_rate_is_measured_on_experts_that_stay() -> None:
    cache = cache_of(3)
    ticks = iter(range(100))
    rate = cache.read_rate(seconds=1.5, clock=lambda: float(next(ticks)))
    assert rate == 2 * cache.store.record.n_bytes / 3  # two experts, three ticks
    assert cache.traffic == Traffic()
    take(cache, 1, 0, 1)
    assert cache.traffic.n_hits == 2


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("n_places", [1, 2, 8])
def test_experts_come_onto_a_gpu_right_while_it_still_computes(source: str, n_places: int, tmp_path: Path) -> None:
    """Each place is read by a product that is queued behind long work, and filled again at once."""
    big = torch.randn(4096, 4096, device="cuda")
    store = (
        HostStore(EXPERTS, numbered, locked=True)
        if source == "host"
        else make_store("disk", tmp_path, EXPERTS, numbered)
    )
    cache = ExpertCache(store, n_places * store.record.n_bytes, "cuda")
    sums: list[tuple[int, torch.Tensor]] = []
    for step in range(20):
        layer = (1, 3)[step % 2]
        for expert, gate_up, _ in cache.visit(layer, [0, 1, 2, 3]):
            big = (big @ big).clamp(-1, 1)
            assert isinstance(gate_up, torch.Tensor)
            sums.append((layer * 100 + expert, gate_up.mean() + 0 * big[0, 0]))
        cache.expect(4 - layer, [2, 3])
    assert [round(found.item()) for _, found in sums] == [number for number, _ in sums]
    cache.close()
