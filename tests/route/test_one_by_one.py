"""Whatever runs beside a request, before it or in its place, it gets the tokens that it gets alone.

The definition is a forward without any cache for every token, whose mask is `model.mask.visible`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from puna.config import LlamaConfig, RopeScaling
from puna.engine.blocks import Counts
from puna.engine.engine import Engine
from puna.engine.request import Output, Request, Sampling
from puna.engine.sampler import SamplerState, choose
from puna.engine.speculate import Lookup, Proposer
from puna.engine.spill import MemorySpill
from puna.kernels import native
from puna.model.transformer import Llama
from puna.quant import swap
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, read_whole, tiny_config

CHUNK = 8
TIGHT = Counts(14, 8)  # of 8 positions each: room for one of the longest requests, or for a few short ones


def scout() -> LlamaConfig:
    """Every layer routed, heads normed, long wavelengths stretched."""
    config = tiny_config()
    scaling = RopeScaling(factor=16.0, low_factor=1.0, high_factor=1.0, original_context=32)
    return replace(config, text=replace(config.text, moe_layers=frozenset(range(4)), rope_scaling=scaling))


def maverick() -> LlamaConfig:
    """Dense and routed layers in turn, more experts, heads not normed."""
    config = tiny_config()
    return replace(config, text=replace(config.text, n_experts=16, qk_norm=False))


SHAPES: dict[str, Callable[[], LlamaConfig]] = {"scout": scout, "maverick": maverick}
PACKED = "scout, packed"  # for the C++ runner
RUNS = [*SHAPES, pytest.param(PACKED, marks=pytest.mark.skipif(not native.available(), reason="no C++ kernels here"))]


@dataclass(frozen=True)
class Case:
    model: Llama
    requests: list[Request]
    expected: list[list[int]]


@cache
def case_of(shape: str) -> Case:
    torch.set_num_threads(1)
    model = random_model(SHAPES["scout" if shape == PACKED else shape]())
    requests = [text_request(n, n, seeded) for n in borders(1, 2, 3) for seeded in (False, True)]
    requests += [picture_request(n, seeded) for n in (0, *borders(1)) for seeded in (False, True)]
    expected = [plain(model, request) for request in requests]
    if shape == PACKED:
        for name, parameter in list(model.named_parameters()):
            swap.placer()(model, name, parameter.detach())
    return Case(model, requests, expected)


def borders(*chunks: int) -> list[int]:
    return [n for chunk in chunks for n in (chunk * CHUNK - 1, chunk * CHUNK, chunk * CHUNK + 1)]


def settings(seeded: bool, seed: int, n: int = 11) -> Sampling:
    if seeded:
        return Sampling(seed=seed, temperature=1.2, top_p=0.95, max_new_tokens=n, repetition_penalty=1.1)
    return Sampling(temperature=0, max_new_tokens=n)


def text_request(n: int, seed: int, seeded: bool) -> Request:
    return Request(ids=random_ids(n, seed), sampling=settings(seeded, seed))


def picture_request(n: int, seeded: bool) -> Request:
    """Two pictures behind `n` ids, so that patches fall on both sides of a border."""
    image = [PATCH_ID] * TILE_TOKENS
    tiles = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1
    ids = random_ids(n, 1) + image + random_ids(3, 2) + image * 2 + random_ids(2, 3)
    return Request(ids=ids, tiles=tiles, sampling=settings(seeded, n))


@torch.inference_mode()
def plain(model: Llama, request: Request) -> list[int]:
    """Returns the tokens of a request, by a whole forward without a cache for each."""
    features = None if request.tiles is None else model.embed_tiles(request.tiles)
    ids, state = list(request.ids), SamplerState(request.sampling, request.ids)
    for _ in range(request.sampling.max_new_tokens or 0):
        (choice,) = choose(read_whole(model, ids, features)[-1:], [state], [PATCH_ID])
        ids.append(choice.token)
    return ids[len(request.ids) :]


def tokens(outputs: list[list[Output]]) -> list[list[int]]:
    return [output.ids for (output,) in outputs]


@pytest.fixture(params=RUNS)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def test_alone(case: Case) -> None:
    for request, expected in zip(case.requests, case.expected, strict=True):
        engine = Engine(case.model)
        assert tokens(engine.run([request])) == [expected]
        engine.check_integrity()


@pytest.mark.parametrize("max_step_tokens", [9, 33, 2048])
def test_in_any_batch(case: Case, max_step_tokens: int) -> None:
    order = random.Random(max_step_tokens).sample(range(len(case.requests)), len(case.requests))
    engine = Engine(case.model, max_step_tokens=max_step_tokens, max_sequences=8)
    assert tokens(engine.run([case.requests[i] for i in order])) == [case.expected[i] for i in order]
    engine.check_integrity()


@pytest.mark.parametrize("spilled", [False, True])
def test_after_preemption(case: Case, spilled: bool) -> None:
    spill = MemorySpill(10**7) if spilled else None
    engine = Engine(case.model, n_blocks=TIGHT, max_step_tokens=40, max_sequences=12, spill=spill)
    assert tokens(engine.run(case.requests)) == case.expected
    assert engine.load.n_preempted > 0
    engine.check_integrity()


def test_with_a_warm_prefix(case: Case) -> None:
    engine = Engine(case.model, max_sequences=8)
    assert tokens(engine.run(case.requests)) == case.expected
    n_cold = engine.load.n_cached_tokens
    assert tokens(engine.run(case.requests)) == case.expected
    n_warm = engine.load.n_cached_tokens - n_cold
    assert n_warm >= sum((len(request.ids) - 1) // CHUNK * CHUNK for request in case.requests)
    engine.check_integrity()


def test_going_on_from_an_answer_that_is_remembered(case: Case) -> None:
    engine = Engine(case.model)
    for request, first in zip(case.requests, case.expected, strict=True):
        engine.run([request])
        turn = replace(request, ids=[*request.ids, *first, 5, 6, 7])
        before = engine.load.n_cached_tokens
        assert tokens(engine.run([turn])) == [plain(case.model, turn)]
        # All that was read is found again but a block that was not full, the last token was never read.
        assert engine.load.n_cached_tokens - before >= len(turn.ids) - 3 - 1 - CHUNK
        engine.check_integrity()


def test_another_picture_behind_the_same_ids_is_another_text(case: Case) -> None:
    engine = Engine(case.model)
    request = picture_request(3, False)
    assert request.tiles is not None
    other = replace(request, tiles=request.tiles.flip(0))
    cold = tokens(engine.run([request]))
    assert tokens(engine.run([other])) == [plain(case.model, other)]
    assert engine.load.n_cached_tokens == 0  # the first block of 8 reaches into the first picture
    assert tokens(engine.run([request])) == cold
    assert engine.load.n_cached_tokens > 0


@pytest.mark.parametrize("seeded", [False, True])
def test_samples_that_part_without_room_wait_and_go_on(case: Case, seeded: bool) -> None:
    request = Request(ids=random_ids(20, 1), n=6, sampling=settings(seeded, 3, 30))
    seeds = [request.sampling if not seeded else replace(request.sampling, seed=3 + i) for i in range(6)]
    expected = [plain(case.model, replace(request, n=1, sampling=sampling)) for sampling in seeds]
    engine = Engine(case.model, n_blocks=Counts(9, 4), max_sequences=6)
    (outputs,) = engine.run([request])
    assert [output.ids for output in outputs] == expected
    assert engine.load.n_preempted > 0
    engine.check_integrity()


@pytest.mark.parametrize("shape", RUNS)
def test_a_random_schedule_gives_what_each_gets_alone_and_leaks_nothing(shape: str) -> None:
    random_schedule(case_of(shape), n_steps=300, seed=1)


def test_a_random_schedule_with_drafts_gives_the_same() -> None:
    random_schedule(case_of("scout"), n_steps=300, seed=3, proposer=Lookup())


@pytest.mark.slow
@pytest.mark.parametrize("shape", RUNS)
def test_ten_thousand_steps_of_a_random_schedule_leak_nothing(shape: str) -> None:
    random_schedule(case_of(shape), n_steps=10_000, seed=2)


def random_schedule(case: Case, n_steps: int, seed: int, proposer: Proposer | None = None) -> None:
    """Adds, aborts, lets deadlines pass and preempts at random. Checks every token and, after each step, all blocks."""
    chooser, now = random.Random(seed), [0.0]
    spill = MemorySpill(100_000)
    engine = Engine(case.model, n_blocks=TIGHT, max_step_tokens=24, max_sequences=7, spill=spill, clock=lambda: now[0])
    running: dict[int, tuple[list[int], list[int]]] = {}  # what each request should get, and what it got
    n_whole = n_ended = 0
    for step in range(n_steps + 2000):
        now[0] += chooser.expovariate(1.0)
        while step < n_steps and engine.n_waiting < 4 and chooser.random() < 0.5:
            i = chooser.randrange(len(case.requests))
            deadline = now[0] + chooser.uniform(5, 60) if chooser.random() < 0.2 else None
            request = replace(case.requests[i], priority=chooser.choice([-3, 0, 0, 0, 3]), deadline_seconds=deadline)
            running[engine.add(request)] = case.expected[i], []
        if running and chooser.random() < 0.03:
            number = chooser.choice(list(running))
            assert [event.finish for event in engine.abort(number)] == ["abort"]
            del running[number]
            n_ended += 1
            engine.check_integrity()
        if chooser.random() < 0.01:
            engine.forget()
        for event in engine.step():
            expected, got = running[event.request_id]
            if event.token is not None:
                got.append(event.token)
                assert got == expected[: len(got)]
            if event.finish is not None:
                assert got == expected or event.finish == "abort"
                n_whole += event.finish == "length"
                n_ended += event.finish == "abort"
                del running[event.request_id]
        engine.check_integrity()
        if step >= n_steps and engine.is_idle:
            break
    assert not running
    assert engine.is_idle
    assert engine.load.n_held_blocks == Counts(0, 0)
    load = engine.load
    assert n_whole > n_steps / 20
    assert n_ended > n_steps / 100
    assert load.n_preempted > n_steps / 50
    assert load.n_cached_tokens > 0
