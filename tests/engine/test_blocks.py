"""Blocks are never lost, shared prefixes are found across chunk borders, and what must go goes coldest first."""

from collections import Counter

import pytest

from puna.engine.blocks import KEY_BYTES, Blocks, Counts, Kind, Layout, Pool, Table, chain

BLOCK, CHUNK = 2, 8
IROPE = Layout(block_len=BLOCK, chunk_len=CHUNK, has_global=True)
ALL_GLOBAL = Layout(block_len=BLOCK, chunk_len=None, has_global=True)
ALL_CHUNKED = Layout(block_len=BLOCK, chunk_len=CHUNK, has_global=False)


class Contents:
    """A `Storage` whose blocks hold a few bytes."""

    def __init__(self) -> None:
        self.of: dict[tuple[Kind, int], bytes] = {}

    def copy(self, kind: Kind, source: int, target: int) -> None:
        self.of[kind, target] = self.of.get((kind, source), b"")

    def read(self, kind: Kind, block: int) -> bytes:
        return self.of.get((kind, block), b"")

    def write(self, kind: Kind, block: int, content: bytes) -> None:
        self.of[kind, block] = content


def keys_of(ids: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    for i in range(0, len(ids) - BLOCK + 1, BLOCK):
        keys.append(chain(keys[-1] if keys else b"", ids[i : i + BLOCK]))
    return keys


def read(blocks: Blocks, ids: list[int], *, piece: int = 5) -> Table:
    """Reads a text that may end anywhere, beginning with what is remembered of it."""
    table = blocks.open(keys_of(ids)[: (len(ids) - 1) // BLOCK])
    while table.length < len(ids):
        n = blocks.room(table, min(piece, len(ids) - table.length))
        assert n, "no room"
        blocks.grow(table, n)
        blocks.advance(table, n, keys_of(ids))
    return table


def test_a_key_names_the_whole_past_and_the_pictures() -> None:
    assert len(chain(b"", [1, 2])) == KEY_BYTES
    keys = [
        chain(b"", [1, 2]),
        chain(b"", [2, 1]),
        chain(chain(b"", [1, 2]), [1, 2]),
        chain(b"", [1, 2], [b"a" * 16]),
        chain(b"", [1, 2], [b"b" * 16]),
        chain(b"", [1 + 2**31, 2]),
    ]
    assert len(set(keys)) == len(keys)


def test_a_sequence_holds_what_the_layout_says() -> None:
    assert [IROPE.held(n) for n in (0, 1, 2, 7, 8, 9)] == [(0, 0), (1, 1), (1, 1), (4, 4), (4, 0), (5, 1)]
    assert [IROPE.peak(n) for n in (0, 1, 7, 8, 9, 100)] == [(0, 0), (1, 1), (4, 4), (4, 4), (5, 4), (50, 4)]
    assert [ALL_GLOBAL.peak(n) for n in (1, 9)] == [(1, 0), (5, 0)]
    assert [ALL_CHUNKED.peak(n) for n in (1, 9)] == [(0, 1), (0, 4)]


def test_blocks_are_taken_shared_and_given_back() -> None:
    pool = Pool(3)
    a, b = pool.take(2)
    pool.share(a)
    pool.check(Counter({a: 2, b: 1}))
    pool.release([a, b])
    assert pool.n_available == 2
    pool.release([a])
    assert pool.n_available == 3
    pool.check(Counter())
    with pytest.raises(AssertionError, match="more often than held"):
        pool.release([a])


def test_integrity_is_checked() -> None:
    pool = Pool(3)
    (a,) = pool.take(1)
    with pytest.raises(AssertionError, match="differ from those of the tables"):
        pool.check(Counter())
    pool.check(Counter([a]))
    blocks = Blocks(IROPE, Counts(8, 8), Contents())
    table = read(blocks, [1, 2, 3])
    table.global_blocks.pop()
    with pytest.raises(AssertionError, match="not what 3 positions need"):
        blocks.check_integrity([table])


def test_known_blocks_stay_until_their_place_is_needed_coldest_and_last_first() -> None:
    gone: list[bytes] = []
    pool = Pool(4, lambda block, key: gone.append(key))
    first, second = pool.take(2), pool.take(2)
    for block, key in zip(first + second, (b"a", b"b", b"c", b"d"), strict=True):
        pool.publish(block, key)
    pool.release(second)
    pool.release(first)
    assert (pool.n_available, pool.n_cold) == (4, 4)
    pool.take(3)
    assert gone == [b"d", b"c", b"b"]
    assert [pool.find(key) for key in (b"a", b"b")] == [first[0], None]


@pytest.mark.parametrize("layout", [IROPE, ALL_GLOBAL, ALL_CHUNKED])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31])
def test_a_text_read_again_begins_where_it_ended(layout: Layout, length: int) -> None:
    ids = list(range(length))
    blocks = Blocks(layout, Counts(40, 40), Contents())
    first = read(blocks, ids)
    blocks.check_integrity([first])
    again = blocks.open(keys_of(ids)[: (length - 1) // BLOCK])
    assert again.length == (length - 1) // BLOCK * BLOCK
    assert again.global_blocks == first.global_blocks[: len(again.global_blocks)]
    blocks.check_integrity([first, again])
    blocks.close(first)
    blocks.check_integrity([again])
    blocks.close(again)
    assert blocks.available == blocks.counts
    third = blocks.open(keys_of(ids)[: (length - 1) // BLOCK])
    assert third.length == again.length == 0 or third.length == (length - 1) // BLOCK * BLOCK
    blocks.check_integrity([third])


def test_another_end_shares_the_beginning_only() -> None:
    blocks = Blocks(IROPE, Counts(40, 40), Contents())
    first = read(blocks, list(range(20)))
    for common in (0, 1, 2, 7, 8, 9, 16, 19):
        ids = list(range(common)) + [99] * (20 - common)
        table = blocks.open(keys_of(ids)[:9])
        assert table.length == common // BLOCK * BLOCK
        blocks.check_integrity([first, table])
        blocks.close(table)


def test_a_prefix_needs_chunked_blocks_only_of_the_chunk_that_it_ends_in() -> None:
    ids = list(range(30))
    blocks = Blocks(IROPE, Counts(40, 6), Contents())  # chunked blocks for one chunk and a half
    blocks.close(read(blocks, ids))
    # All global blocks are remembered; of the chunked ones the last six, those of positions 16 to 28.
    table = blocks.open(keys_of(ids))
    assert (table.length, table.chunk_base, len(table.chunk_blocks)) == (30, 24, 3)
    blocks.close(table)
    # A prefix that ends inside the first chunk finds no chunked blocks, so nothing; at a border it needs none.
    assert [blocks.open(keys_of(ids)[:n]).length for n in (3, 4, 5, 6, 8)] == [0, 8, 8, 8, 16]


def test_passed_chunks_are_given_back_at_once_and_stay_remembered() -> None:
    blocks = Blocks(IROPE, Counts(40, 40), Contents())
    table = read(blocks, list(range(23)), piece=23)
    assert (table.chunk_base, len(table.chunk_blocks), len(table.global_blocks)) == (16, 4, 12)
    assert blocks.available.n_chunked == 36
    assert blocks.pools["chunked"].n_cold == 8


def test_a_text_reads_on_in_a_pool_of_a_single_chunk() -> None:
    blocks = Blocks(IROPE, Counts(40, 4), Contents())
    table = read(blocks, list(range(50)), piece=50)
    assert table.length == 50
    assert blocks.capacity == 80
    assert Blocks(IROPE, Counts(40, 3), Contents()).capacity == 6
    assert Blocks(ALL_CHUNKED, Counts(0, 4), Contents()).capacity is None


def test_what_was_only_guessed_is_cut_off_again() -> None:
    blocks = Blocks(IROPE, Counts(40, 40), Contents())
    ids = list(range(9))
    table = read(blocks, ids[:6])
    blocks.grow(table, 7)  # reaches into the next chunk
    blocks.advance(table, 1, keys_of(ids))
    blocks.check_integrity([table])
    assert table.length == 7
    blocks.grow(table, 5)
    blocks.advance(table, 2, keys_of(ids))
    blocks.check_integrity([table])
    assert (table.length, table.chunk_base) == (9, 8)


def test_a_fork_copies_a_partly_filled_block_and_shares_the_rest() -> None:
    contents = Contents()
    blocks = Blocks(IROPE, Counts(6, 5), contents)
    table = read(blocks, list(range(5)))
    contents.of = {("global", table.global_blocks[-1]): b"g", ("chunked", table.chunk_blocks[-1]): b"c"}
    twin = blocks.fork(table)
    assert twin is not None
    assert twin.global_blocks[:2] == table.global_blocks[:2]
    assert twin.global_blocks[2] != table.global_blocks[2]
    assert contents.read("global", twin.global_blocks[2]) == b"g"
    assert contents.read("chunked", twin.chunk_blocks[2]) == b"c"
    third = blocks.fork(table)
    assert third is not None
    assert blocks.fork(table) is None  # no chunked block is left for a copy
    blocks.check_integrity([table, twin, third])


def test_content_in_doubt_and_old_weights_are_forgotten() -> None:
    blocks = Blocks(IROPE, Counts(40, 40), Contents())
    ids = list(range(20))
    table = read(blocks, ids)
    blocks.disown(table)
    blocks.close(table)
    assert blocks.open(keys_of(ids)).length == 0
    blocks.close(read(blocks, ids))
    blocks.forget()
    blocks.check_integrity([])
    assert blocks.open(keys_of(ids)).length == 0
