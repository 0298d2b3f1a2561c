from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from puna.config import LlamaConfig
from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Kind
from puna.engine.engine import Engine, score
from puna.engine.ranks import LeadingLlama, batch_of, follow, numbers_of
from puna.engine.request import Output, Request, Sampling
from puna.engine.runner import TorchRunner
from puna.model.transformer import Llama
from puna.parallel import Layout, Mesh, ShareOfLlama
from puna.quant import swap
from tests.reference.ranks import Ranks
from tests.reference.shares import ON_FOUR, ON_TWO, SHAPES, Place, filled, parameters_of, put, share_of, widened
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids

Work = Callable[[Llama], Any]


class Drawer:
    """A spill in memory without a bound."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Kind, bytes], bytes] = {}
        self.n_returned = 0

    def put(self, kind: Kind, key: bytes, content: Callable[[], bytes]) -> None:
        if (kind, key) not in self.kept:
            self.kept[kind, key] = content()

    def has(self, kind: Kind, key: bytes) -> bool:
        return (kind, key) in self.kept

    def get(self, kind: Kind, key: bytes) -> bytes:
        self.n_returned += 1
        return self.kept[kind, key]

    def clear(self) -> None:
        self.kept.clear()


class Numbers(NamedTuple):
    """In which numbers weights are stored, in which each rank then puts its part of them, and whether it packs that for
    the processor's kernels, which then round activations too."""

    stored: swap.Format | None = None
    placed: swap.Format | None = None
    is_packed: bool = False

    @property
    def place(self) -> Place:
        if self == PLAIN:
            return put
        policy = None if self.placed is None else swap.Policy(to=self.placed)
        return swap.placer(policy) if self.is_packed else swap.placer(policy, arrange=lambda weight: weight)


PLAIN = Numbers()


def on_ranks(config: LlamaConfig, layout: Layout, work: Work, numbers: Numbers) -> Any:
    """Rank 0 does `work` with the model, the others follow; they return how they ended."""
    kind = LeadingLlama if Mesh(layout).is_leader else ShareOfLlama
    model = share_of(config, layout, kind, place=numbers.place, stored=numbers.stored)
    if not isinstance(model, LeadingLlama):
        follow(model, TorchRunner)
        return "let go"
    try:
        return work(model)
    finally:
        model.leader.end()


def alone(config: LlamaConfig, work: Work, numbers: Numbers = PLAIN) -> Any:
    with torch.device("meta"):
        model = Llama(config)
    return work(filled(model, parameters_of(config, numbers.stored), numbers.place))


def check_same(ranks: Ranks, config: LlamaConfig, layout: Layout, work: Work, numbers: Numbers = PLAIN) -> None:
    led, *others = ranks.run(on_ranks, config, layout, work, numbers)
    assert led == alone(config, work, numbers)
    assert others == ["let go"] * (layout.world - 1)


def requests() -> list[Request]:
    """Text and pictures, greedy and drawn, several samples of one prompt, lengths around borders of chunks."""
    image = [PATCH_ID] * TILE_TOKENS
    tiles = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ids = random_ids(6, 1) + image + random_ids(3, 2) + image * 2 + random_ids(2, 3)
    greedy, drawn = Sampling(temperature=0, max_new_tokens=10), Sampling(temperature=1, seed=5, max_new_tokens=6)
    return [
        Request(ids=ids, tiles=tiles, sampling=greedy),
        *(Request(ids=random_ids(n, n), sampling=greedy) for n in (1, 8, 29)),
        Request(ids=random_ids(13, 4), sampling=drawn, n=2),
    ]


def answers(model: Llama) -> list[list[Output]]:
    engine = Engine(model, max_step_tokens=16, max_sequences=4, n_blocks=Counts(40, 8))
    outputs = engine.run(requests())
    engine.check_integrity()
    return outputs


def answers_in_little_room(model: Llama) -> tuple[list[list[Output]], bool, bool]:
    """Blocks for hardly more than one sequence, so that others make room, and what leaves goes to a spill."""
    spill = Drawer()
    engine = Engine(model, max_step_tokens=16, max_sequences=4, n_blocks=Counts(8, 4), spill=spill)
    outputs = engine.run(requests()) + engine.run(requests()[::-1])
    engine.check_integrity()
    return outputs, engine.load.n_preempted > 0, spill.n_returned > 0


def answers_from_spill(model: Llama) -> tuple[list[list[Output]], bool]:
    """One request after the other; the last comes again when others have taken its place."""
    spill = Drawer()
    engine = Engine(model, n_blocks=Counts(5, 3), spill=spill)
    outputs = [engine.run([request])[0] for request in (*requests()[2:4], requests()[0], requests()[3])]
    return outputs, spill.n_returned > 0


def answers_of_several_engines(model: Llama) -> list[list[Output]]:
    """Caches come and go."""
    return [engine.run([request])[0] for request in requests()[:3] for engine in [Engine(model, n_blocks=Counts(9, 4))]]


@pytest.mark.parametrize("layout", ON_TWO, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_two_ranks_answer_as_one(two_ranks: Ranks, shape: str, layout: Layout) -> None:
    check_same(two_ranks, SHAPES[shape], layout, answers)


# Every layout with one of the shapes; with both, it is slow.
_SHAPES_ON_FOUR = [
    pytest.param(shape, layout, marks=() if (i + j) % 2 else pytest.mark.slow, id=f"{shape}-{layout}")
    for i, shape in enumerate(SHAPES)
    for j, layout in enumerate(ON_FOUR)
]


@pytest.mark.parametrize(("shape", "layout"), _SHAPES_ON_FOUR)
def test_four_ranks_answer_as_one(four_ranks: Ranks, shape: str, layout: Layout) -> None:
    check_same(four_ranks, SHAPES[shape], layout, answers)


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2)], ids=str)
def test_preemption_and_spill_reach_all_ranks(two_ranks: Ranks, layout: Layout) -> None:
    _, was_preempted, was_restored = alone(SHAPES["scout"], answers_in_little_room)
    assert was_preempted and was_restored, "this test means to have both"
    check_same(two_ranks, SHAPES["scout"], layout, answers_in_little_room)


def test_stages_of_one_kind_of_layer_keep_blocks_of_both(four_ranks: Ranks) -> None:
    _, was_restored = alone(SHAPES["scout"], answers_from_spill)
    assert was_restored, "this test means to have it"
    check_same(four_ranks, SHAPES["scout"], Layout(pipeline=4), answers_from_spill)


def test_caches_come_and_go_on_all_ranks(two_ranks: Ranks) -> None:
    check_same(two_ranks, SHAPES["maverick"], Layout(expert=2), answers_of_several_engines)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("scout", Layout(tensor=2, expert=2)),
        ("maverick", Layout(tensor=2, pipeline=2)),
        pytest.param("maverick", Layout(tensor=4), marks=pytest.mark.slow),
        pytest.param("maverick", Layout(expert=4), marks=pytest.mark.slow),
        pytest.param("scout", Layout(pipeline=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_that_make_their_parts_int4_answer_as_one(four_ranks: Ranks, shape: str, layout: Layout) -> None:
    check_same(four_ranks, widened(SHAPES[shape]), layout, answers, Numbers(placed="int4"))


@pytest.mark.parametrize("to", swap.FORMATS)
def test_ranks_that_cut_stored_small_numbers_answer_as_one(two_ranks: Ranks, to: swap.Format) -> None:
    check_same(two_ranks, widened(SHAPES["maverick"]), Layout(tensor=2), answers, Numbers(stored=to))


def scores(model: Llama) -> list[list[float]]:
    request = requests()[0]
    return score(model, request.ids, request.tiles).tolist()


def check_close(ranks: Ranks, layout: Layout, numbers: Numbers, tolerance: float) -> None:
    config = widened(SHAPES["scout"])
    led, *_ = ranks.run(on_ranks, config, layout, scores, numbers)
    expected = torch.tensor(alone(config, scores, numbers))
    torch.testing.assert_close(torch.tensor(led), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("layout", ON_TWO, ids=str)
def test_two_ranks_score_as_one(two_ranks: Ranks, layout: Layout) -> None:
    check_close(two_ranks, layout, PLAIN, 1e-5)


def test_packed_parts_score_as_one_up_to_the_rounding_of_activations(two_ranks: Ranks) -> None:
    # Kernels round activations to 127 steps: a sum in another order can tip one, which is a step in what comes of it.
    check_close(two_ranks, Layout(tensor=2), Numbers(placed="int4", is_packed=True), 3 / 127)


def test_batch_becomes_numbers_and_a_batch_again() -> None:
    entries: Sequence[Entry] = [Entry(2, 9, [4, 2], [7], 8), Entry(1, 0, [], [3], 0)]
    ids, positions = torch.tensor([5, 6, 7]), torch.tensor([9, 10, 0])
    for wanted in ([1, 2], []):
        batch = Batch(ids, positions, torch.ones(1, 4), entries, torch.tensor(wanted, dtype=torch.int64))
        again = batch_of(numbers_of(batch), batch.features, torch.device("cpu"))
        assert again.entries == entries
        for mine, theirs in zip(again, batch, strict=True):
            assert not isinstance(mine, torch.Tensor) or torch.equal(mine, theirs)
