"""A run that goes on on other ranks reads the documents that it would have read, and learns the same from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from puna.config import LlamaConfig
from puna.train.loop import Steps, make_packer, model_config, settle
from puna.train.objective import Reader
from puna.train.pack import Batch, DataState, PackedFeed
from puna.train.recipe import Recipe, from_dict
from puna.train.store import tokenise
from puna.train.team import Team
from tests.reference.doubled import Doubled
from tests.reference.ranks import Ranks
from tests.train.runs import divided, logged, pause_at, silent
from tests.train.test_update import PROVED, exact  # noqa: F401  (a fixture)

PAUSES = (4, 8)
STEPS = 12


class Told(PackedFeed):
    """Notes what is in each batch that its reader takes."""

    def __init__(self, recipe: Recipe, config: LlamaConfig) -> None:
        data = recipe.data
        store = tokenise(data.documents, data.tokenizer, config.vision, data.store, silent)
        super().__init__(make_packer(store, config, recipe), store.digest)
        self.taken: list[tuple[tuple[int, ...], ...]] = []

    @contextmanager
    def opened(self, state: DataState, reader: int, readers: int) -> Iterator[Reader]:  # type: ignore[override]
        with super().opened(state, reader, readers) as batches:
            yield _Noting(batches, self.taken)


class _Noting:
    def __init__(self, batches: Reader, taken: list[tuple[tuple[int, ...], ...]]) -> None:
        self.batches, self.taken = batches, taken

    def next(self) -> tuple[Batch, DataState]:
        batch, state = self.batches.next()
        self.taken.append(batch.pieces)
        return batch, state


def taken(tables: dict[str, Any], run: str, until: int) -> list[tuple[tuple[int, ...], ...]]:
    """Trains here until a step is done, and returns what is in the batches that this rank read."""
    recipe = from_dict(tables)
    settle(recipe)
    config = model_config(recipe)

    with Doubled():
        team = Team.of(recipe, config)
        with team.first_alone():
            Path(run).mkdir(exist_ok=True)
            feed = Told(recipe, config)
        state, update = team.begin(recipe, config)
        Steps(recipe, state, update, feed, Path(run), team, pause_at(until) if team.is_first else silent).run()
    assert state.step == until
    return feed.taken


def in_turn(of_ranks: list[list[tuple[tuple[int, ...], ...]]]) -> list[tuple[tuple[int, ...], ...]]:
    """Batches in the order of the run, of which every rank has read one and then the next."""
    return [batch for each in zip(*of_ranks, strict=True) for batch in each]


@pytest.mark.slow
def test_four_ranks_two_and_one_take_turns_at_a_run_of_one_process(
    four_ranks: Ranks,
    two_ranks: Ranks,
    exact: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Samples step for step the same, in their order; losses as close as double precision has them."""
    alone, turns = tmp_path / "alone", tmp_path / "turns"
    exact["schedule"] |= {"steps": STEPS}
    whole = taken(exact, str(alone), STEPS)
    accumulate = exact["batch"]["accumulate"]
    assert len(whole) == STEPS * accumulate and len(set(whole)) > STEPS
    found = in_turn(four_ranks.run(taken, divided(exact, shard=4, expert=2), str(turns), PAUSES[0]))
    found += in_turn(two_ranks.run(taken, divided(exact, shard=2), str(turns), PAUSES[1]))
    found += taken(exact, str(turns), STEPS)
    assert found == whole
    for key in ("loss", "grad_norm"):
        expected, seen = logged(alone, key), logged(turns, key)
        assert max(abs(a - b) / a for a, b in zip(expected, seen, strict=True)) < PROVED
