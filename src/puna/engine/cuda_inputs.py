"""What one step on a GPU reads besides weights and caches, as whole numbers in one stretch of memory.

In: a `Batch`. Out: `Inputs`, freshly made for a step of any shape, or written into the buffers of a captured graph,
padded to its number of rows. All that depends on where a sequence stands, chunk borders included, is in here: a graph
that is replayed reads it anew, so nothing of an earlier step can be left in it.
Not here: kernels (`kernels/triton_attention`), what is done with them (`cuda_step`, `cuda_graphs`).
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from puna.config import TextConfig
from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Kind, Layout
from puna.engine.cache import kind_of
from puna.kernels.triton_attention import Places, tile_len

MAX_DECODE_ROWS = 16
"""New tokens of an entry up to which each is a row of its own, as in decoding: one, and the drafts behind it."""

TABLES = 4
"""How much longer than the pool all tables of a graph may be together: sequences may share a prefix."""


class Inputs(NamedTuple):
    """All int32. `rows` of the flat batch decode, each for itself; `tiles` are neighbours of prompts."""

    ids: Tensor  # [T]
    positions: Tensor  # [T]
    places: Mapping[Kind, Places]
    rows: Tensor  # [n]
    tiles: Tensor  # [m 2] first row and number of rows
    longest: Mapping[Kind, int]  # a bound on the keys that a row of `rows` sees


def kinds(config: TextConfig) -> tuple[Kind, ...]:
    """Returns the kinds of layers that a model has, in a fixed order."""
    return tuple(sorted({kind_of(config, layer) for layer in range(config.n_layers)}, reverse=True))


def places(entries: Sequence[Entry], kind: Kind, layout: Layout) -> Places:
    """Returns where the rows of a batch find their keys in layers of a kind, on the host."""
    tables = [entry.global_blocks if kind == "global" else entry.chunk_blocks for entry in entries]
    bases = [0 if kind == "global" else entry.chunk_base for entry in entries]
    table = torch.tensor(list(chain.from_iterable(tables)), dtype=torch.int64)
    n_new, begin, base, n_blocks = (
        torch.tensor(column, dtype=torch.int64)
        for column in (
            [entry.n_new for entry in entries],
            [entry.start for entry in entries],
            bases,
            [len(blocks) for blocks in tables],
        )
    )
    owner = torch.repeat_interleave(n_new)  # T
    nth = torch.arange(len(owner)) - (n_new.cumsum(0) - n_new)[owner]
    slot = begin[owner] + nth - base[owner]  # T, counted from the table's beginning
    start = (n_blocks.cumsum(0) - n_blocks)[owner]
    own = table[start + slot // layout.block_len] * layout.block_len + slot % layout.block_len
    is_whole = kind == "global" or layout.chunk_len is None
    first = torch.zeros_like(slot) if is_whole else slot // (layout.chunk_len or 1) * (layout.chunk_len or 1)
    return Places(*(x.to(torch.int32) for x in (table, start, first, slot + 1, own)))


def of_batch(batch: Batch, config: TextConfig, layout: Layout, device: torch.device) -> Inputs:
    """Returns the inputs of a step of any shape, on `device`."""
    where = {kind: places(batch.entries, kind, layout) for kind in kinds(config)}
    rows: list[int] = []
    tiles: list[tuple[int, int]] = []
    at, step = 0, tile_len(config.n_heads, config.n_kv_heads)
    for entry in batch.entries:
        if entry.n_new <= MAX_DECODE_ROWS:
            rows += range(at, at + entry.n_new)
        else:
            tiles += ((i, min(step, at + entry.n_new - i)) for i in range(at, at + entry.n_new, step))
        at += entry.n_new
    return Inputs(
        ids=batch.ids.to(device, torch.int32),
        positions=batch.positions.to(device, torch.int32),
        places={kind: Places(*(x.to(device) for x in each)) for kind, each in where.items()},
        rows=torch.tensor(rows, dtype=torch.int32, device=device),
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 2),
        longest={kind: int((each.last - each.first).max()) for kind, each in where.items()},
    )


def only_decodes(batch: Batch) -> bool:
    """Returns whether a batch has the shape of the steps that graphs are made for."""
    return batch.features is None and all(entry.n_new <= MAX_DECODE_ROWS for entry in batch.entries)


class StaticInputs:
    """The buffers of one graph of `n_rows` rows: `inputs` are views of one tensor, which `fill` overwrites.

    Rows beyond the batch see nothing and store nothing.
    """

    def __init__(self, n_rows: int, config: TextConfig, layout: Layout, counts: Counts, device: torch.device) -> None:
        self._config, self._layout = config, layout
        self._kinds = kinds(config)
        self._room = {kind: TABLES * max(counts.of(kind), 1) for kind in self._kinds}
        n_head = (2 + 4 * len(self._kinds)) * n_rows
        n_numbers = n_head + sum(self._room.values())
        self._host = torch.zeros(n_numbers, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(n_numbers, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._host_head, self._host_tables = self._views(self._host, n_rows)
        head, tables = self._views(self._device, n_rows)
        self._n_head, self._tables = n_head, tables
        seen = {"global": config.context_len, "chunked": layout.chunk_len or config.context_len}
        self.inputs = Inputs(
            ids=head[0],
            positions=head[1],
            places={kind: Places(tables[kind], *head[2 + 4 * i : 6 + 4 * i]) for i, kind in enumerate(self._kinds)},
            rows=torch.arange(n_rows, dtype=torch.int32, device=device),
            tiles=torch.zeros(0, 2, dtype=torch.int32, device=device),
            longest={kind: min(seen[kind], counts.of(kind) * layout.block_len) for kind in self._kinds},
        )
        self.fill(None)

    def fill(self, batch: Batch | None) -> bool:
        """Writes a batch of at most `n_rows` rows, or none. Returns False, and writes nothing, if its tables are
        longer than the buffers."""
        where = {} if batch is None else {kind: places(batch.entries, kind, self._layout) for kind in self._kinds}
        if any(len(each.table) > self._room[kind] for kind, each in where.items()):
            return False
        if self._copied is not None:
            self._copied.synchronize()  # the copy before may still read the host's buffer
        self._host_head.zero_()
        self._host_head[5::4] = -1  # own: store nothing
        if batch is not None:
            T = len(batch.ids)
            self._host_head[0, :T], self._host_head[1, :T] = batch.ids, batch.positions
            for i, kind in enumerate(self._kinds):
                for j, column in enumerate(where[kind][1:]):
                    self._host_head[2 + 4 * i + j, :T] = column
                n = len(where[kind].table)
                self._host_tables[kind][:n] = where[kind].table
                self._tables[kind][:n].copy_(self._host_tables[kind][:n], non_blocking=True)
        self._device[: self._n_head].copy_(self._host[: self._n_head], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return True

    def _views(self, numbers: Tensor, n_rows: int) -> tuple[Tensor, dict[Kind, Tensor]]:
        """Returns the part with a number a row, [2 + 4 a kind, n_rows], and the table of each kind."""
        n_lines = 2 + 4 * len(self._kinds)
        head, *tables = torch.split(numbers, [n_lines * n_rows, *self._room.values()])
        return head.view(n_lines, n_rows), dict(zip(self._kinds, tables, strict=True))
