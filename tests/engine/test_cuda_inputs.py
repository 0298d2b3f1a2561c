"""The numbers that a step on a GPU reads are those of its batch, in fresh tensors and in a graph's buffers."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Kind, Layout
from puna.engine.cuda_inputs import StaticInputs, of_batch, only_decodes, places
from tests.reference.tiny import tiny_config

TEXT = tiny_config().text  # chunks of 8, blocks of 8
LAYOUT = Layout.of(TEXT)
CPU = torch.device("cpu")


def batch(entries: list[Entry], features: torch.Tensor | None = None) -> Batch:
    positions = [entry.start + i for entry in entries for i in range(entry.n_new)]
    ids = torch.arange(len(positions)) + 1
    return Batch(ids, torch.tensor(positions), features, entries, torch.arange(len(ids)))


DECODING = batch([Entry(1, 17, [5, 3, 9], [4], 16), Entry(2, 7, [1, 2], [6, 8], 0)])


def test_rows_see_their_sequence_or_their_chunk_and_own_the_next_slot() -> None:
    table, start, first, last, own = (x.tolist() for x in places(DECODING.entries, "global", LAYOUT))
    assert (table, start) == ([5, 3, 9, 1, 2], [0, 3, 3])
    assert (first, last) == ([0, 0, 0], [18, 8, 9])
    assert own == [9 * 8 + 1, 1 * 8 + 7, 2 * 8 + 0]
    table, start, first, last, own = (x.tolist() for x in places(DECODING.entries, "chunked", LAYOUT))
    assert (table, start) == ([4, 6, 8], [0, 1, 1])
    assert (first, last) == ([0, 0, 8], [2, 8, 9])  # the last row is the first of its chunk
    assert own == [4 * 8 + 1, 6 * 8 + 7, 8 * 8 + 0]


def test_long_entries_become_tiles_and_short_ones_rows() -> None:
    inputs = of_batch(
        batch([Entry(1, 0, [0], [1], 0), Entry(100, 0, list(range(13)), list(range(13)), 0)]), TEXT, LAYOUT, CPU
    )
    assert inputs.rows.tolist() == [0]
    assert inputs.tiles.tolist() == [[1, 64], [65, 36]]  # 128 rows of a tile, 2 query heads a key head
    assert inputs.longest == {"global": 100, "chunked": 8}


def test_steps_with_prompts_or_pictures_do_not_only_decode() -> None:
    assert only_decodes(DECODING)
    assert not only_decodes(DECODING._replace(features=torch.zeros(1, 4)))
    assert not only_decodes(batch([Entry(17, 0, [0, 1, 2], [0, 1, 2], 0)]))


def static(n_rows: int, n_blocks: int = 16) -> StaticInputs:
    return StaticInputs(n_rows, TEXT, LAYOUT, Counts(n_blocks, n_blocks), CPU)


def test_buffers_hold_the_batch_and_rows_beyond_it_see_and_store_nothing() -> None:
    buffers, fresh = static(5), of_batch(DECODING, TEXT, LAYOUT, CPU)
    assert buffers.fill(DECODING)
    inputs = buffers.inputs
    assert inputs.ids.tolist() == [*DECODING.ids.tolist(), 0, 0]
    assert inputs.positions.tolist() == [17, 7, 8, 0, 0]
    kinds: tuple[Kind, ...] = ("global", "chunked")
    for kind in kinds:
        mine, other = inputs.places[kind], fresh.places[kind]
        assert torch.equal(mine.table[: len(other.table)], other.table)
        for a, b in zip(mine[1:], other[1:], strict=True):
            assert torch.equal(a[:3], b)
        assert mine.first[3:].eq(0).all() and mine.last[3:].eq(0).all() and mine.own[3:].eq(-1).all()


def test_buffers_keep_nothing_of_the_batch_before() -> None:
    once, again = static(4), static(4)
    once.fill(DECODING)
    for buffers in (once, again):
        buffers.fill(batch([Entry(1, 3, [2], [1], 0)]))
    assert torch.equal(once.inputs.ids, again.inputs.ids)
    for kind in once.inputs.places:
        for a, b in zip(once.inputs.places[kind][1:], again.inputs.places[kind][1:], strict=True):
            assert torch.equal(a, b)


def test_tables_longer_than_the_buffers_are_left_to_others() -> None:
    buffers = static(2, n_blocks=1)
    long = batch([Entry(1, 39, [0] * 5, [0], 32)])
    before = buffers.inputs.ids.clone()
    assert not buffers.fill(long) and torch.equal(buffers.inputs.ids, before)


def test_buffers_never_move_since_a_graph_reads_their_addresses() -> None:
    buffers = static(4)
    addresses = [x.data_ptr() for each in buffers.inputs.places.values() for x in each]
    buffers.fill(DECODING)
    assert addresses == [x.data_ptr() for each in buffers.inputs.places.values() for x in each]
