"""Which block belongs to whom: two pools of blocks, the prefixes that they remember, and the tables of sequences.

Global layers need every position of a sequence, chunked layers only those of the chunk being read. So there are two
pools, and a block of a pool has its place in every layer of its kind. A full block is known by a key that says its
whole past (`chain`), so equal beginnings are found and shared, right across chunk borders. A block that nobody holds
any more keeps its content until its place is needed, the coldest first; then it may go to a `Spill`.
Not here: tensors (`engine/cache` is the `Storage`), who runs (`engine/scheduler`), ids and pictures beyond their keys.

Why two pools and what a prefix needs of each: docs/decisions/008.
"""

import hashlib
import math
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from puna.config import TextConfig

Kind = Literal["global", "chunked"]

KINDS: tuple[Kind, ...] = ("global", "chunked")

BLOCK_LEN = 32
"""Positions of a block where chunks allow it; else the largest number that divides 32 and the chunk."""

KEY_BYTES = 16  # of a block's key: 128 bits, so that no two texts of this world meet


class Counts(NamedTuple):
    """How many blocks of each kind."""

    n_global: int
    n_chunked: int

    def of(self, kind: Kind) -> int:
        return self.n_global if kind == "global" else self.n_chunked


class Storage(Protocol):
    """What holds the content of blocks: all layers of a kind together."""

    def copy(self, kind: Kind, source: int, target: int) -> None:
        """Copies the content of a block."""
        ...

    def read(self, kind: Kind, block: int) -> bytes:
        """Returns the content of a block."""
        ...

    def write(self, kind: Kind, block: int, content: bytes) -> None:
        """Gives a block the content that `read` returned."""
        ...


class Spill(Protocol):
    """Keeps contents of blocks that had to make room, as long as it can."""

    def put(self, kind: Kind, key: bytes, content: Callable[[], bytes]) -> None:
        """Keeps a content, which is only asked for if it is not here yet."""
        ...

    def has(self, kind: Kind, key: bytes) -> bool:
        """Says whether `get` has something to return."""
        ...

    def get(self, kind: Kind, key: bytes) -> bytes:
        """Returns a content that `has` knows."""
        ...

    def clear(self) -> None:
        """Forgets everything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How positions become blocks. `chunk_len` is None where no layer is confined to chunks."""

    block_len: int
    chunk_len: int | None
    has_global: bool

    @classmethod
    def of(cls, config: TextConfig) -> "Layout":
        chunk_len = config.chunk_len if config.rope_layers else None
        return cls(
            block_len=BLOCK_LEN if chunk_len is None else math.gcd(chunk_len, BLOCK_LEN),
            chunk_len=chunk_len,
            has_global=chunk_len is None or len(config.rope_layers) < config.n_layers,
        )

    def chunk_base(self, position: int) -> int:
        """Returns the first position of the chunk that `position` lies in; 0 without chunks."""
        return 0 if self.chunk_len is None else position - position % self.chunk_len

    def held(self, length: int) -> Counts:
        """Returns the blocks that a sequence holds between steps when `length` positions are stored."""
        in_chunk = 0 if self.chunk_len is None else length % self.chunk_len
        return Counts(self._blocks(length) if self.has_global else 0, self._blocks(in_chunk))

    def peak(self, length: int) -> Counts:
        """Returns the most blocks that a sequence must hold at once on its way to `length` stored positions."""
        in_chunk = 0 if self.chunk_len is None else min(length, self.chunk_len)
        return Counts(self._blocks(length) if self.has_global else 0, self._blocks(in_chunk))

    def _blocks(self, n_positions: int) -> int:
        return -(-n_positions // self.block_len)


def chain(previous: bytes, ids: Sequence[int], tile_digests: Iterable[bytes] = ()) -> bytes:
    """Returns the key of a full block: it follows the block `previous` (b"" at the start) and holds `ids`.

    `tile_digests` name the content of the tiles that its patch ids belong to, in order, so that another picture
    behind the same ids is another text.
    """
    key = hashlib.blake2b(previous, digest_size=KEY_BYTES)
    key.update(array("q", ids).tobytes())
    for digest in tile_digests:
        key.update(digest)
    return key.digest()


@dataclass(slots=True, eq=False)
class Table:
    """Where the keys and values of one sequence lie: `length` positions are stored, and the next goes to `length`.

    Position p lies in global_blocks[p // block_len] and, from `chunk_base` on, in
    chunk_blocks[(p - chunk_base) // block_len]. Within a step the blocks reach beyond `length`, between steps not.
    """

    length: int = 0
    chunk_base: int = 0
    global_blocks: list[int] = field(default_factory=list)
    chunk_blocks: list[int] = field(default_factory=list)

    def blocks(self, kind: Kind) -> list[int]:
        return self.global_blocks if kind == "global" else self.chunk_blocks

    def start(self, kind: Kind) -> int:
        """Returns the position that the first block of a kind begins with."""
        return 0 if kind == "global" else self.chunk_base


class Pool:
    """Blocks of one kind by number. A block is held by so many sequences, or cold (free, but known by a key), or free.

    `evicted` is told of a cold block and its key before the block gets another content.
    """

    def __init__(self, n_blocks: int, evicted: Callable[[int, bytes], None] = lambda block, key: None) -> None:
        self._n_holders = [0] * n_blocks
        self._free = list(range(n_blocks - 1, -1, -1))  # the last one is taken first, so that few are ever touched
        self._cold: OrderedDict[int, None] = OrderedDict()  # coldest first
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._evicted = evicted

    @property
    def n_blocks(self) -> int:
        return len(self._n_holders)

    @property
    def n_available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free) + len(self._cold)

    @property
    def n_cold(self) -> int:
        """Blocks that nobody holds and that still keep a known prefix."""
        return len(self._cold)

    def take(self, n: int) -> list[int]:
        """Returns `n` blocks for their first holder; at most `n_available`."""
        assert n <= self.n_available, "who takes blocks has counted them"
        for _ in range(n - len(self._free)):
            block, _ = self._cold.popitem(last=False)
            key = self._key_of[block]
            self._evicted(block, key)
            self._forget(block)
            self._free.append(block)
        taken = [self._free.pop() for _ in range(n)]
        for block in taken:
            self._n_holders[block] = 1
        return taken

    def find(self, key: bytes) -> int | None:
        """Returns the block that is known by `key`, or None."""
        return self._block_of.get(key)

    def is_held(self, block: int) -> bool:
        return self._n_holders[block] > 0

    def share(self, block: int) -> None:
        """Adds a holder to a held or cold block."""
        self._n_holders[block] += 1
        self._cold.pop(block, None)

    def publish(self, block: int, key: bytes) -> None:
        """Makes a held block known by `key`, unless another one is already."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a holder from each block. Of those that nobody holds then, the last ones are the first to go."""
        for block in reversed(blocks):
            assert self._n_holders[block] > 0, f"block {block} is released more often than held"
            self._n_holders[block] -= 1
            if self._n_holders[block] == 0:
                if block in self._key_of:
                    self._cold[block] = None
                else:
                    self._free.append(block)

    def disown(self, blocks: Iterable[int]) -> None:
        """Forgets the keys of blocks, whose content is in doubt."""
        for block in blocks:
            self._forget(block)

    def clear(self) -> None:
        """Forgets all keys; cold blocks become free."""
        self._free += self._cold
        self._cold.clear()
        self._block_of.clear()
        self._key_of.clear()

    def check(self, holders: Counter[int]) -> None:
        """Raises AssertionError unless every block is exactly where it should be, given who holds how many."""
        expected = [holders[block] for block in range(self.n_blocks)]
        assert self._n_holders == expected, f"holders {self._n_holders} differ from those of the tables {expected}"
        held = {block for block, n in enumerate(self._n_holders) if n}
        free, cold = set(self._free), set(self._cold)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(held) + len(free) + len(cold) == self.n_blocks, "a block is lost, or in two places"
        assert held | free | cold == set(range(self.n_blocks)), "a block is lost, or in two places"
        assert {key: block for block, key in self._key_of.items()} == self._block_of, "keys and blocks disagree"
        assert cold <= self._key_of.keys() and not free & self._key_of.keys(), "a cold block has a key, a free one none"

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]


class Blocks:
    """Both pools, and the tables that hold their blocks. A table is good from `open` or `fork` until `close`."""

    def __init__(self, layout: Layout, counts: Counts, storage: Storage, spill: Spill | None = None) -> None:
        self.layout = layout
        self.pools = {kind: Pool(counts.of(kind), self._evicted(kind)) for kind in KINDS}
        self._kinds = tuple(kind for kind in KINDS if self._is_used(kind))
        self._storage = storage
        self._spill = spill

    @property
    def counts(self) -> Counts:
        return Counts(*(self.pools[kind].n_blocks for kind in KINDS))

    @property
    def available(self) -> Counts:
        return Counts(*(self.pools[kind].n_available for kind in KINDS))

    @property
    def capacity(self) -> int | None:
        """The most positions that a sequence can store when it has everything for itself; None: there is no end."""
        rooms = {kind: self.pools[kind].n_blocks * self.layout.block_len for kind in self._kinds}
        if self.layout.chunk_len is not None and rooms["chunked"] >= self.layout.chunk_len:
            del rooms["chunked"]
        return min(rooms.values(), default=None)

    def remembered(self, keys: Sequence[bytes]) -> int:
        """Returns how many blocks of a text need not be read, those in the spill included."""
        return self._n_remembered(keys, spilled=True)

    def shared(self, keys: Sequence[bytes]) -> Counts:
        """Returns how many blocks `open` would share with others that hold them."""
        n = self._n_remembered(keys, spilled=False)
        shared = dict.fromkeys(KINDS, 0)
        for kind in self._kinds:
            found = (self.pools[kind].find(key) for key in keys[self._first(kind, n) : n])
            shared[kind] = sum(block is not None and self.pools[kind].is_held(block) for block in found)
        return Counts(*shared.values())

    def open(self, keys: Sequence[bytes]) -> Table:
        """Returns a table that begins with the longest prefix of `keys` that is remembered.

        keys: those of the full blocks of a text, in order; leave out the last if there must be something to read.
        Blocks come back from the spill as far as there is room without taking from others.
        """
        n = self._n_remembered(keys, spilled=True)
        missing = {
            kind: [key for key in keys[self._first(kind, n) : n] if self.pools[kind].find(key) is None]
            for kind in self._kinds
        }
        if any(missing.values()) and not self._has_room_to_restore(keys, n, missing):
            n, missing = self._n_remembered(keys, spilled=False), {}
        return self._restored(keys, n, missing)

    def room(self, table: Table, n_new: int) -> int:
        """Returns how many of the next `n_new` positions can be stored with the blocks that are available now."""
        for kind in self._kinds:
            blocks = len(table.blocks(kind)) + self.pools[kind].n_available
            n_new = min(n_new, table.start(kind) + blocks * self.layout.block_len - table.length)
        return n_new

    def grow(self, table: Table, n_new: int) -> None:
        """Gives the table blocks for its next `n_new` positions; at most `room`."""
        for kind in self._kinds:
            blocks = table.blocks(kind)
            n = -(-(table.length + n_new - table.start(kind)) // self.layout.block_len)
            blocks += self.pools[kind].take(max(n - len(blocks), 0))

    def advance(self, table: Table, n_new: int, keys: Sequence[bytes] = ()) -> None:
        """Counts the next `n_new` positions as stored, for which `grow` made room for as many or more.

        Full blocks become known by their `keys`, which begin at position 0, as far as there are any; blocks beyond the
        last position and those of chunks that were passed are given back.
        """
        first, table.length = table.length // self.layout.block_len, table.length + n_new
        n_full = table.length // self.layout.block_len
        for kind in self._kinds:
            pool, blocks = self.pools[kind], table.blocks(kind)
            base = table.start(kind) // self.layout.block_len
            for i, key in enumerate(keys[first:n_full], start=first):
                pool.publish(blocks[i - base], key)
            kept = -(-table.length // self.layout.block_len) - base
            pool.release(blocks[kept:])
            del blocks[kept:]
        passed = (self.layout.chunk_base(table.length) - table.chunk_base) // self.layout.block_len
        if passed:
            self.pools["chunked"].release(table.chunk_blocks[:passed])
            del table.chunk_blocks[:passed]
            table.chunk_base = self.layout.chunk_base(table.length)

    def fork(self, table: Table) -> Table | None:
        """Returns a twin that shares all full blocks and has a copy of a last, partly filled one; None without room.

        Call it between steps.
        """
        is_partial = table.length % self.layout.block_len > 0
        if is_partial and any(self.pools[kind].n_available < 1 for kind in self._kinds):
            return None
        twin = Table(table.length, table.chunk_base)
        for kind in self._kinds:
            pool, blocks = self.pools[kind], table.blocks(kind)
            shared = blocks[:-1] if is_partial else blocks
            for block in shared:
                pool.share(block)
            twin.blocks(kind).extend(shared)
            if is_partial:
                (own,) = pool.take(1)
                self._storage.copy(kind, blocks[-1], own)
                twin.blocks(kind).append(own)
        return twin

    def close(self, table: Table) -> None:
        """Gives all blocks of a table back; known ones stay remembered while their place is not needed."""
        for kind in self._kinds:
            self.pools[kind].release(table.blocks(kind))
            table.blocks(kind).clear()
        table.length = table.chunk_base = 0

    def disown(self, table: Table) -> None:
        """Forgets what is known of the table's blocks, because their content is in doubt."""
        for kind in self._kinds:
            self.pools[kind].disown(table.blocks(kind))

    def forget(self) -> None:
        """Forgets all prefixes, as when the weights have changed."""
        for kind in KINDS:
            self.pools[kind].clear()
        if self._spill is not None:
            self._spill.clear()

    def check_integrity(self, tables: Iterable[Table]) -> None:
        """Raises AssertionError unless the pools agree with these tables, which must be all that are open."""
        tables = list(tables)
        for table in tables:
            held = Counts(*(len(table.blocks(kind)) for kind in KINDS))
            assert held == self.layout.held(table.length), f"{held} blocks are not what {table.length} positions need"
            assert table.chunk_base == self.layout.chunk_base(table.length), "a passed chunk is still held"
        for kind in KINDS:
            self.pools[kind].check(Counter(block for table in tables for block in table.blocks(kind)))

    def _is_used(self, kind: Kind) -> bool:
        return self.layout.has_global if kind == "global" else self.layout.chunk_len is not None

    def _first(self, kind: Kind, n: int) -> int:
        """Returns the first block of a kind that a text of `n` full blocks still needs."""
        return 0 if kind == "global" else self.layout.chunk_base(n * self.layout.block_len) // self.layout.block_len

    def _n_remembered(self, keys: Sequence[bytes], *, spilled: bool) -> int:
        """Returns how many blocks of a text are remembered such that it can go on behind them.

        All global blocks must be, and the chunked ones from the start of the chunk that the prefix ends in. A border
        between chunks needs no chunked block at all, so cutting back within the last chunk always ends well.
        """
        n = self._run("global", keys, 0, spilled) if self.layout.has_global else len(keys)
        if self.layout.chunk_len is None:
            return n
        first = self._first("chunked", n)
        return first + self._run("chunked", keys[:n], first, spilled)

    def _run(self, kind: Kind, keys: Sequence[bytes], first: int, spilled: bool) -> int:
        """Returns how many blocks from `first` on are remembered without a gap."""
        n = first
        while n < len(keys) and (
            self.pools[kind].find(keys[n]) is not None
            or (spilled and self._spill is not None and self._spill.has(kind, keys[n]))
        ):
            n += 1
        return n - first

    def _has_room_to_restore(self, keys: Sequence[bytes], n: int, missing: dict[Kind, list[bytes]]) -> bool:
        for kind in self._kinds:
            found = (self.pools[kind].find(key) for key in keys[self._first(kind, n) : n])
            n_warmed = sum(block is not None and not self.pools[kind].is_held(block) for block in found)
            if len(missing[kind]) + n_warmed > self.pools[kind].n_available:
                return False
        return True

    def _restored(self, keys: Sequence[bytes], n: int, missing: dict[Kind, list[bytes]]) -> Table:
        length = n * self.layout.block_len
        table = Table(length, self.layout.chunk_base(length))
        # First hold what is here and read what was spilled: taking blocks may evict, and spilling may crowd out.
        for kind in self._kinds:
            for key in keys[self._first(kind, n) : n]:
                block = self.pools[kind].find(key)
                if block is not None:
                    self.pools[kind].share(block)
        contents = {(kind, key): self._spilled(kind, key) for kind, gone in missing.items() for key in gone}
        for (kind, key), content in contents.items():
            (block,) = self.pools[kind].take(1)
            self._storage.write(kind, block, content)
            self.pools[kind].publish(block, key)
        for kind in self._kinds:
            found = [self.pools[kind].find(key) for key in keys[self._first(kind, n) : n]]
            table.blocks(kind).extend(block for block in found if block is not None)
        return table

    def _spilled(self, kind: Kind, key: bytes) -> bytes:
        assert self._spill is not None, "what is missing here was found in the spill"
        return self._spill.get(kind, key)

    def _evicted(self, kind: Kind) -> Callable[[int, bytes], None]:
        def evicted(block: int, key: bytes) -> None:
            if self._spill is not None:
                self._spill.put(kind, key, lambda: self._storage.read(kind, block))

        return evicted
