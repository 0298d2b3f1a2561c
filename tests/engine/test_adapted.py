from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from puna.adapters.merge import merge
from puna.adapters.shelf import Shelf
from puna.adapters.spec import Adapter, Spec
from puna.engine.adapted import SplitRunner
from puna.engine.blocks import Counts
from puna.engine.engine import Engine, score
from puna.engine.native import NativeRunner
from puna.engine.ranks import LeadingLlama, follow
from puna.engine.request import Output, Request, Sampling
from puna.engine.runner import TorchRunner, for_model
from puna.engine.speculate import Lookup
from puna.errors import PromptError
from puna.kernels import native
from puna.model.transformer import Llama
from puna.parallel import Layout, Mesh, ShareOfLlama
from puna.quant import swap
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.ranks import Ranks
from tests.reference.shares import ON_FOUR, ON_TWO, parameters_of, put, share_of
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, tiny_config

CONFIG = tiny_config()
GREEDY = Sampling(temperature=0, max_new_tokens=5, n_logprobs=0)


def adapters() -> dict[str, Adapter]:
    few = Spec(rank=9, targets=frozenset({"experts", "attention"}), experts={1: (0, 3), 3: (2,)})
    return {
        "broad": adapter_for(CONFIG, Spec(rank=3, targets=EVERYTHING), 1),
        "few": adapter_for(CONFIG, few, 2),
    }


def packed() -> Llama:
    model = random_model(CONFIG)
    swap.quantize(model, swap.Policy(to="int8", parts=swap.DECODER))
    return model


def engine(model: Llama, **options: Any) -> Engine:
    options = {"max_step_tokens": 16, "max_sequences": 6, "n_blocks": Counts(60, 12)} | options
    return Engine(model, shelf=Shelf(model, adapters()), **options)


def requests() -> list[Request]:
    image = [PATCH_ID] * TILE_TOKENS
    tiles = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    seen = random_ids(5, 1) + image + random_ids(3, 2)
    return [
        *(Request(ids=seen, tiles=tiles, sampling=GREEDY, adapter=name) for name in (None, "broad", "few")),
        Request(ids=random_ids(21, 4), sampling=GREEDY, adapter="broad"),
        Request(ids=random_ids(21, 4), sampling=GREEDY),
        Request(ids=random_ids(9, 5), sampling=Sampling(temperature=1, seed=5, max_new_tokens=5), adapter="few", n=2),
    ]


def same(one: list[Output], other: list[Output]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.ids == theirs.ids
        assert [each.chosen for each in ours.logprobs] == pytest.approx(
            [each.chosen for each in theirs.logprobs], rel=1e-4, abs=1e-4
        )


def packed_as_it_is() -> Llama:
    model = random_model(CONFIG)
    for name, parameter in list(model.named_parameters()):
        swap.placer()(model, name, parameter.detach())
    return model


def split(model: Llama) -> Engine:
    """An engine whose fast runner knows no adapters, as where a GPU replays whole steps."""
    made = engine(model)
    plain = TorchRunner(model, made.cache, Shelf(model, adapters()))
    made._runner = made._telling = SplitRunner(NativeRunner(model, made.cache), plain, CONFIG.patch_id)
    return made


KINDS: Mapping[str, tuple[Callable[[], Llama], Callable[[Llama], Engine]]] = {
    "plain": (lambda: random_model(CONFIG), engine),
    "packed": (packed, engine),
    "packed as it is": (packed_as_it_is, engine),
    "split": (packed, split),
}
needs_native = pytest.mark.skipif(not native.available(), reason="native: needs AVX-512")


@pytest.mark.parametrize("kind", ["plain", pytest.param("packed", marks=needs_native)])
def test_each_request_of_a_mixed_batch_gets_what_it_gets_alone(kind: str) -> None:
    make, of = KINDS[kind]
    model = make()
    together = of(model)
    outputs = together.run(requests())
    together.check_integrity()
    for request, output in zip(requests(), outputs, strict=True):
        alone = of(model).run([request])[0]
        if kind == "packed":
            assert alone == output  # to the last bit
        else:
            same(alone, output)
    assert len({tuple(output[0].ids) for output in outputs[:3]}) == 3  # adapters make a difference


@pytest.mark.parametrize("kind", ["plain", pytest.param("packed as it is", marks=needs_native)])
def test_each_adapter_answers_as_merged_weights_do(kind: str) -> None:
    outputs = engine(KINDS[kind][0]()).run(requests())
    for request, output in zip(requests(), outputs, strict=True):
        merged = random_model(CONFIG)
        if request.adapter is not None:
            merge(merged, adapters()[request.adapter])
        bare = Request(ids=request.ids, tiles=request.tiles, sampling=request.sampling, n=request.n)
        same(Engine(merged, n_blocks=Counts(60, 12)).run([bare])[0], output)


@needs_native
@pytest.mark.parametrize("kind", ["packed", "split"])
def test_requests_without_an_adapter_keep_their_bits_beside_others(kind: str) -> None:
    make, of = KINDS[kind]
    model = make()
    without = [request for request in requests() if request.adapter is None]
    alone = Engine(model, n_blocks=Counts(60, 12)).run(without)
    beside = of(model).run(requests())
    assert alone == [output for request, output in zip(requests(), beside, strict=True) if request.adapter is None]


def test_what_was_read_with_one_adapter_is_not_known_to_another() -> None:
    together = engine(random_model(CONFIG))
    ids = random_ids(25, 7)
    n_cached = []
    for adapter in (None, "broad", "few", "broad", None):
        together.add(Request(ids=ids, sampling=GREEDY, adapter=adapter))
        events = [event for _ in range(8) for event in together.step()]
        n_cached.append(events[0].n_cached)
    assert n_cached == [0, 0, 0, 24, 24]


def test_drafts_of_texts_with_adapters_change_nothing() -> None:
    model = random_model(CONFIG)
    plain, drafted = (engine(model, proposer=proposer).run(requests()) for proposer in (None, Lookup()))
    for ours, theirs in zip(plain, drafted, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("kind", ["plain", *(pytest.param(kind, marks=needs_native) for kind in ("packed", "split"))])
def test_routes_of_a_mixed_batch_are_told_to_who_wants_them(kind: str) -> None:
    make, of = KINDS[kind]
    model = make()

    def routes(shown: list[Request]) -> list[list[Any]]:
        together = of(model)
        numbers = [together.add(request) for request in shown]
        events = [event for _ in range(8) for event in together.step()]
        return [[event.routes for event in events if event.request_id == number] for number in numbers]

    asking = [Request(ids=random_ids(9, 3), sampling=GREEDY, adapter=name, wants_routes=True) for name in (None, "few")]
    assert routes(asking) == [*routes(asking[:1]), *routes(asking[1:])]


def test_logits_of_a_text_are_those_of_its_adapter() -> None:
    model, ids = random_model(CONFIG), random_ids(20, 6)
    got = score(model, ids, shelf=Shelf(model, adapters()), adapter="few")
    merge(model, adapters()["few"])
    torch.testing.assert_close(got, score(model, ids), rtol=1e-4, atol=1e-5)


def test_adapter_that_was_not_loaded_is_refused_with_those_that_were() -> None:
    with pytest.raises(PromptError, match="'broad', 'few'"):
        engine(random_model(CONFIG)).add(Request(ids=[1], adapter="lost"))
    with pytest.raises(PromptError, match="none was loaded"):
        Engine(random_model(CONFIG), n_blocks=Counts(4, 4)).add(Request(ids=[1], adapter="lost"))


@needs_native
def test_packed_models_keep_their_fast_runner_beside_adapters() -> None:
    model = packed()
    made = engine(model)
    assert isinstance(for_model(model, made.cache, Shelf(model, adapters())), NativeRunner)
    assert isinstance(for_model(model, made.cache), NativeRunner)


# Ranks --------------------------------------------------------------------------------------------------------------


def on_ranks(layout: Layout) -> Any:
    """Rank 0 answers, the others follow."""
    kind = LeadingLlama if Mesh(layout).is_leader else ShareOfLlama
    model = share_of(CONFIG, layout, kind, place=put, stored=None)
    assert isinstance(model, ShareOfLlama)
    shelf = Shelf(model, {name: model.share.part_of_adapter(adapter) for name, adapter in adapters().items()})
    if not isinstance(model, LeadingLlama):
        follow(model, lambda model, cache: TorchRunner(model, cache, shelf))
        return None
    try:
        together = Engine(model, max_step_tokens=16, max_sequences=6, n_blocks=Counts(60, 12), shelf=shelf)
        return together.run(requests())
    finally:
        model.leader.end()


def check_ranks(ranks: Ranks, layout: Layout) -> None:
    for ours, theirs in zip(ranks.run(on_ranks, layout)[0], engine(whole()).run(requests()), strict=True):
        same(ours, theirs)


def whole() -> Llama:
    model = random_model(CONFIG)
    for name, weight in parameters_of(CONFIG, None).items():
        put(model, name, weight)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("layout", ON_TWO, ids=["tensor", "expert", "pipeline"])
def test_two_ranks_with_adapters_answer_as_one_does(two_ranks: Ranks, layout: Layout) -> None:
    check_ranks(two_ranks, layout)


@pytest.mark.slow  # four processes, every way to divide
@pytest.mark.parametrize("layout", ON_FOUR)
def test_four_ranks_with_adapters_answer_as_one_does(four_ranks: Ranks, layout: Layout) -> None:
    check_ranks(four_ranks, layout)
