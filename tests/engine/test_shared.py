import gc
import threading
from collections.abc import Iterator

import pytest
import torch

from puna.engine.engine import Engine
from puna.engine.request import Event, Request, Sampling
from puna.engine.shared import Share, SharedEngine
from puna.errors import WeightsError
from puna.model.transformer import Llama
from tests.reference.tiny import random_ids


@pytest.fixture
def shared(model: Llama) -> Iterator[SharedEngine]:
    shared = SharedEngine(Engine(model))
    yield shared
    shared.engine.check_integrity()


def request(seed: int, n_new: int = 6, n: int = 1) -> Request:
    return Request(ids=random_ids(11, seed), n=n, sampling=Sampling(temperature=0, max_new_tokens=n_new))


def drain(share: Share) -> list[Event]:
    events = []
    while not share.is_idle:
        events += share.step()
    return events


def test_everybody_gets_their_own_events_whoever_steps(model: Llama, shared: SharedEngine) -> None:
    alone = [output.ids for (output,) in Engine(model).run([request(1), request(2)])]
    one, other = shared.open(), shared.open()
    first, second = one.add(request(1)), other.add(request(2))
    events = drain(one)
    assert (shared.engine.is_idle, other.is_idle) == (True, False)
    assert ([event.token for event in events], {event.request_id for event in events}) == (alone[0], {first})
    rest = other.step()  # all are there already
    assert ([event.token for event in rest], {event.request_id for event in rest}) == (alone[1], {second})
    assert other.is_idle
    assert other.step() == []


def test_counts_are_a_shares_own(shared: SharedEngine) -> None:
    one, other = shared.open(), shared.open()
    one.add(request(1, n=2))
    other.add(request(2))
    assert (one.n_waiting, other.n_waiting, shared.engine.n_waiting) == (2, 1, 3)
    other.step()
    assert (one.n_running, other.n_running, shared.engine.n_running) == (2, 1, 3)


def test_after_an_abort_no_event_comes_and_each_open_sample_is_named_once(shared: SharedEngine) -> None:
    one, other = shared.open(), shared.open()
    number = one.add(request(1, n_new=3, n=2))
    other.add(request(2, n_new=9))
    drain(other)  # has finished both samples of the other share, whose events wait
    assert one.abort(number, sample=1) == [Event(number, 1, None, None, "abort")]
    assert {event.sample for event in drain(one)} == {0}
    assert one.abort(number) == []


def test_a_share_that_is_gone_ends_its_requests(shared: SharedEngine) -> None:
    one, other = shared.open(), shared.open()
    one.add(request(1, n_new=400))
    other.add(request(2))
    other.step()
    del one
    gc.collect()
    drain(other)
    assert shared.engine.is_idle


def test_a_failed_step_is_told_to_everybody_that_it_hit_and_to_nobody_else(model: Llama, shared: SharedEngine) -> None:
    one, other, third = shared.open(), shared.open(), shared.open()
    one.add(request(1))
    one.add(request(2))
    other.add(request(3))
    sound = model.norm.weight.clone()
    model.norm.weight.fill_(float("nan"))
    try:
        with pytest.raises(WeightsError, match="not finite"):
            one.step()
    finally:
        model.norm.weight.copy_(sound)
    assert one.is_idle
    assert one.step() == []
    third.add(request(4))
    assert len(drain(third)) == 6
    with pytest.raises(WeightsError, match="not finite"):
        other.step()
    assert other.is_idle
    assert shared.engine.is_idle


def test_threads_may_use_one_engine(model: Llama, shared: SharedEngine) -> None:
    expected = [output.ids for (output,) in Engine(model).run([request(seed) for seed in range(6)])]
    got: dict[int, list[int | None]] = {}

    def work(seed: int) -> None:
        torch.set_num_threads(1)
        share = shared.open()
        share.add(request(seed))
        got[seed] = [event.token for event in drain(share)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[seed] for seed in range(6)] == expected
