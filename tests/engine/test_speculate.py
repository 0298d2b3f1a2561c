import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.blocks import Counts
from puna.engine.engine import Engine
from puna.engine.request import Output, Request, Sampling
from puna.engine.speculate import MAX_DRAFTS, Drafting, DraftModel, Key, Lookup, Proposer, Speculator, Wanted
from puna.errors import ConfigError
from puna.model.transformer import Llama
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, tiny_config


@pytest.fixture(scope="module")
def shapes() -> dict[str, Llama]:
    """Routed in every layer and with norms of queries and keys; routed in every second layer and without."""
    config = tiny_config()
    scout = replace(config.text, qk_norm=True, moe_layers=frozenset({0, 1, 2, 3}))
    maverick = replace(config.text, qk_norm=False, moe_layers=frozenset({1, 3}), n_experts=8)
    return {name: random_model(replace(config, text=text)) for name, text in (("scout", scout), ("maverick", maverick))}


@pytest.fixture(scope="module")
def drafter() -> Llama:
    """A model of the same vocabulary, smaller, with other chunks, and seldom right."""
    text = replace(tiny_config().text, n_layers=2, rope_layers=frozenset({0}), chunk_len=4, moe_layers=frozenset({1}))
    return random_model(replace(tiny_config(), text=text, vision=None, patch_id=None))


class Oracle:
    """Proposes what a run without drafts gave, with mistakes: drafts are long, right for a while, then wrong."""

    def __init__(self, outputs: dict[Key, list[int]], prompts: dict[int, int], mistakes: float) -> None:
        self._outputs, self._prompts, self._mistakes = outputs, prompts, mistakes
        self._dice = random.Random(1)

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        drafts = []
        for key, ids, n_drafts in wanted:
            done = len(ids) - self._prompts[key[0]]
            right = self._outputs[key][done : done + n_drafts]
            drafts.append([random_id(self._dice) if self._dice.random() < self._mistakes else id_ for id_ in right])
        return drafts

    def keep(self, keys: Collection[Key]) -> None:
        pass


def random_id(dice: random.Random) -> int:
    return dice.randrange(50)


def outputs_of(model: Llama, requests: Sequence[Request], **options: object) -> tuple[list[list[Output]], Engine]:
    engine = Engine(model, **options)  # type: ignore[arg-type]
    outputs = engine.run(requests)
    engine.check_integrity()
    return outputs, engine


def an_oracle(requests: Sequence[Request], outputs: Sequence[Sequence[Output]], mistakes: float) -> Oracle:
    by_key = {(i + 1, k): output.ids for i, of_request in enumerate(outputs) for k, output in enumerate(of_request)}
    return Oracle(by_key, {i + 1: len(request.ids) for i, request in enumerate(requests)}, mistakes)


def mixed_requests() -> list[Request]:
    """Greedy and seeded, with penalties and log-probabilities, several samples, lengths around chunk borders (8)."""
    samplings = [
        Sampling(temperature=0),
        Sampling(seed=3, temperature=1.2),
        Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2),
        Sampling(seed=5, top_k=4, presence_penalty=0.5, n_logprobs=0),
        Sampling(seed=6, temperature=1.5, top_p=1.0),
    ]
    lens = [7, 8, 9, 15, 17]
    return [
        Request(ids=random_ids(n, n), sampling=replace(s, max_new_tokens=20 + i), n=1 + i % 2)
        for i, (n, s) in enumerate(zip(lens, samplings, strict=True))
    ]


def same(one: Sequence[Sequence[Output]], other: Sequence[Sequence[Output]]) -> bool:
    return [[(o.ids, o.finish) for o in os] for os in one] == [[(o.ids, o.finish) for o in os] for os in other]


@pytest.mark.parametrize("mistakes", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", ["scout", "maverick"])
def test_drafts_right_and_wrong_change_no_token_of_a_mixed_batch(
    shapes: dict[str, Llama], shape: str, mistakes: float
) -> None:
    llama, requests = shapes[shape], mixed_requests()
    plain, _ = outputs_of(llama, requests)
    drafted, engine = outputs_of(llama, requests, proposer=an_oracle(requests, plain, mistakes))
    assert same(drafted, plain)
    for one, other in zip(drafted, plain, strict=True):
        assert [len(o.logprobs) for o in one] == [len(o.logprobs) for o in other]
    load = engine.load
    assert load.n_drafted > 0
    if mistakes == 0:
        assert load.n_accepted == load.n_drafted
        assert load.n_drafted > sum(len(o.ids) for os in plain for o in os) / 2


@pytest.mark.parametrize("kind", ["lookup", "model", "itself"])
def test_every_proposer_leaves_every_token_as_it_is(model: Llama, drafter: Llama, kind: str) -> None:
    requests = mixed_requests()
    requests.append(Request(ids=[1, 2, 3, 4, 5] * 4, sampling=Sampling(temperature=0, max_new_tokens=30)))
    plain, _ = outputs_of(model, requests)
    proposer: Proposer = {
        "lookup": Lookup,
        "model": lambda: DraftModel(drafter, 64, max_sequences=64),
        "itself": lambda: DraftModel(model, 64, max_sequences=64),
    }[kind]()
    drafted, engine = outputs_of(model, requests, proposer=proposer)
    assert same(drafted, plain)
    assert engine.load.n_drafted > 0
    if kind == "itself":  # its greedy drafts are what the greedy requests get
        assert engine.load.n_accepted > 20


def test_a_model_that_drafts_for_itself_is_always_right(model: Llama) -> None:
    requests = [Request(ids=random_ids(n, n), sampling=Sampling(temperature=0, max_new_tokens=30)) for n in (3, 8, 21)]
    plain, _ = outputs_of(model, requests)
    drafted, engine = outputs_of(model, requests, proposer=DraftModel(model, 64, max_sequences=8))
    assert same(drafted, plain)
    assert engine.load.n_accepted == engine.load.n_drafted > 60


@pytest.mark.parametrize("start", range(5, 10))
def test_drafts_that_cross_the_border_of_a_chunk_and_are_refused_leave_no_trace(model: Llama, start: int) -> None:
    """Chunks of 8 tokens: with MAX_DRAFTS wrong drafts in each step, the next chunk is entered and left again."""

    class Wrong:
        def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
            return [[id_ + 1 for id_ in expected[len(w.ids) - start : len(w.ids) - start + 1]] * 8 for w in wanted]

        def keep(self, keys: Collection[Key]) -> None:
            pass

    request = Request(ids=random_ids(start, 1), sampling=Sampling(temperature=0, max_new_tokens=20))
    ((plain,),), _ = outputs_of(model, [request])
    expected = [id_ % 48 for id_ in plain.ids] + [0] * 9
    engine = Engine(model, proposer=Wrong())
    speculator = engine._speculator
    assert speculator is not None
    engine.add(request)
    ids = []
    while not engine.is_idle:
        for pace in speculator._paces.values():
            pace.n_drafts, pace.rest = MAX_DRAFTS, 0
        ids += [event.token for event in engine.step()]
        engine.check_integrity()
    assert ids == plain.ids
    assert engine.load.n_drafted >= 8 * 10


def test_drafts_go_with_pictures(model: Llama) -> None:
    tiles = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    image = [PATCH_ID] * TILE_TOKENS
    ids = random_ids(6, 1) + image + random_ids(3, 2) + image + random_ids(2, 3)
    settings_ = [Sampling(temperature=0), Sampling(seed=2, temperature=1.1)]
    requests = [Request(ids=ids, tiles=tiles, sampling=replace(s, max_new_tokens=25)) for s in settings_]
    plain, _ = outputs_of(model, requests)
    for proposer in (an_oracle(requests, plain, 0.2), Lookup(), DraftModel(model, 64, max_sequences=8)):
        drafted, _ = outputs_of(model, requests, proposer=proposer, max_step_tokens=9, max_sequences=4)
        assert same(drafted, plain)


def test_drafts_go_with_a_warm_prefix_and_are_not_remembered_when_wrong(model: Llama) -> None:
    ids = random_ids(40, 1)
    requests = [Request(ids=ids[:n], sampling=Sampling(temperature=0, max_new_tokens=25)) for n in (33, 40, 33)]
    plain = [outputs_of(model, [request])[0][0] for request in requests]
    engine = Engine(model, proposer=an_oracle(requests, plain, 0.5))
    for _ in range(2):
        engine._n_added = 0  # the oracle knows requests by number
        assert [engine.run([request])[0] for request in requests] == plain
        engine.check_integrity()
    assert engine.load.n_cached_tokens > 0
    # What the engine remembers of the texts with their answers is right as well.
    longer = [Request(ids=[*ids, *plain[1][0].ids[:20]], sampling=Sampling(temperature=0, max_new_tokens=5))]
    engine._speculator = None
    assert engine.run(longer)[0][0].ids == plain[1][0].ids[20:]


def test_drafts_go_with_preemption(model: Llama) -> None:
    requests = mixed_requests() * 2
    plain, _ = outputs_of(model, requests)
    for mistakes in (0.0, 0.4):
        oracle = an_oracle(requests, plain, mistakes)
        drafted, engine = outputs_of(model, requests, proposer=oracle, n_blocks=Counts(12, 9))
        assert same(drafted, plain)
        assert engine.load.n_preempted > 0
        assert engine.load.n_drafted > 0


def test_requests_that_come_and_go_between_steps_keep_their_tokens(model: Llama, drafter: Llama) -> None:
    requests = mixed_requests() * 3
    plain, _ = outputs_of(model, requests)
    dice = random.Random(4)
    proposer = DraftModel(drafter, 64, max_sequences=4, kv_bytes=60_000)
    engine = Engine(model, proposer=proposer, max_step_tokens=12, max_sequences=6)
    got: dict[Key, list[int | None]] = {}
    numbers, gone = {}, set()
    waiting = list(enumerate(requests))
    while waiting or not engine.is_idle:
        if waiting and dice.random() < 0.3:
            i, request = waiting.pop(0)
            numbers[engine.add(request)] = i
        for event in engine.step():
            got.setdefault((event.request_id, event.sample), []).append(event.token)
        if dice.random() < 0.05 and numbers:
            gone.add(dice.choice(list(numbers)))
            engine.abort(max(gone))
        engine.check_integrity()
    for (number, sample), ids in got.items():
        expected = plain[numbers[number]][sample].ids
        assert [id_ for id_ in ids if id_ is not None] == (expected[: len(ids)] if number in gone else expected)


def test_drafts_are_only_read_as_far_as_budget_and_blocks_allow(model: Llama) -> None:
    requests = [Request(ids=random_ids(5, i), sampling=Sampling(temperature=0, max_new_tokens=20)) for i in range(3)]
    plain, _ = outputs_of(model, requests)
    for options in ({"max_step_tokens": 4, "max_sequences": 3}, {"n_blocks": Counts(12, 4)}):
        drafted, _ = outputs_of(model, requests, proposer=an_oracle(requests, plain, 0.0), **options)
        assert same(drafted, plain)


def test_a_stop_id_among_the_drafts_ends_the_text_where_it_would_have_ended(model: Llama) -> None:
    request = Request(ids=random_ids(5, 1), sampling=Sampling(temperature=0, max_new_tokens=20))
    ((plain,),), _ = outputs_of(model, [request])
    stop = plain.ids[7]
    stopping = replace(request, sampling=replace(request.sampling, stop_ids=frozenset({stop})))
    drafted, _ = outputs_of(model, [stopping], proposer=an_oracle([request], [[plain]], 0.0))
    assert drafted == outputs_of(model, [stopping])[0]


# Parts ------------------------------------------------------------------------------------------------------------


def look_up_plain(ids: Sequence[int], n_drafts: int) -> list[int]:
    """The definition: the last place at which the last 4, else 2 ids occurred before, searched from the end."""
    for n in (4, 2):
        for place in range(len(ids) - 1, n - 1, -1):
            if list(ids[place - n : place]) == list(ids[len(ids) - n :]):
                text = list(ids)
                for i in range(n_drafts):
                    text.append(text[place + i])
                return text[len(ids) :]
    return []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(1, 7), max_size=8))
def test_lookup_equals_its_definition_while_a_text_grows(ids: list[int], steps: list[int]) -> None:
    lookup, n = Lookup(), 0
    for step in [*steps, len(ids)]:
        n = min(n + step, len(ids))
        assert lookup.propose([Wanted((1, 0), ids[:n], 5)]) == [look_up_plain(ids[:n], 5)]


def test_lookup_enters_every_id_once() -> None:
    ids = list(range(2000))
    lookup = Lookup()
    lookup.propose([Wanted((1, 0), ids, 4)])
    index = lookup._indices[1, 0]
    n_entered = len(index.places)
    assert n_entered == 1998 + 1996
    index.places.clear()
    lookup.propose([Wanted((1, 0), [*ids, 7], 4)])
    assert len(index.places) == 2


def test_texts_that_are_gone_are_forgotten(model: Llama) -> None:
    for proposer in (Lookup(), DraftModel(model, 64, max_sequences=4)):
        speculator = Speculator(proposer)
        for i in range(100):
            speculator.drafts([Drafting((i, 0), [1, 2, 3, 1, 2], 4, frozenset(), None)])
        held = proposer._indices if isinstance(proposer, Lookup) else proposer._tables
        assert len(held) < 20


def test_more_drafts_follow_right_ones_and_fewer_wrong_ones() -> None:
    speculator, lens = Speculator(Lookup()), []
    text = Drafting((1, 0), [1, 2, 3] * 9, 100, frozenset(), None)
    for n_accepted in (2, 4, 8, 3, 4, 0, 0, 0, 0, 0, 0, 0):
        (drafts,) = speculator.drafts([text])
        lens.append(len(drafts))
        if drafts:
            speculator.learn(text.key, len(drafts), min(n_accepted, len(drafts)))
    assert lens == [2, 4, 8, 8, 4, 8, 1, 0, 0, 1, 0, 0]


def test_drafts_end_before_what_may_not_be_drafted() -> None:
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]

    def drafts(stop: int, forbidden: int, n_most: int) -> tuple[int, ...]:
        speculator, text = Speculator(Lookup(), {forbidden}), Drafting((1, 0), ids, n_most, frozenset({stop}), None)
        for n in (0, 2, 4):  # right twice, so that it goes on with eight
            speculator.learn(text.key, n, n)
            found = speculator.drafts([text])[0]
        return found

    assert drafts(90, 91, 9) == (3, 4, 5, 6, 7, 8, 1, 2)
    assert drafts(5, 91, 9) == (3, 4)
    assert drafts(90, 4, 9) == (3,)
    assert drafts(90, 91, 2) == (3, 4)
    assert drafts(90, 91, 0) == ()


def test_a_draft_model_of_another_vocabulary_is_refused(drafter: Llama) -> None:
    with pytest.raises(ConfigError, match="same vocabulary"):
        DraftModel(drafter, 65, max_sequences=4)


def test_a_draft_model_without_room_drafts_nothing(model: Llama) -> None:
    proposer = DraftModel(model, 64, max_sequences=1, kv_bytes=60_000)
    texts = [Wanted((i, 0), random_ids(12, i), 4) for i in range(40)]
    drafts = proposer.propose(texts)
    assert [] in drafts
    assert any(drafts)
    proposer.keep([])
    assert proposer._blocks.available == proposer._blocks.counts


def test_a_draft_model_writes_on_as_its_own_greedy_run_would(drafter: Llama) -> None:
    proposer = DraftModel(drafter, 64, max_sequences=8)

    def greedy(ids: Sequence[int], n: int) -> list[int]:
        return Engine(drafter).run([Request(ids=ids, sampling=Sampling(temperature=0, max_new_tokens=n))])[0][0].ids

    texts = {(i, 0): random_ids(2 + 5 * i, i) for i in range(4)}
    for _ in range(4):
        wanted = [Wanted(key, ids, 3 + key[0]) for key, ids in texts.items()]
        assert proposer.propose(wanted) == [greedy(w.ids, w.n_drafts) for w in wanted]
        for key in texts:
            texts[key] = texts[key] + random_ids(1 + key[0], len(texts[key]))  # none of its drafts was right
