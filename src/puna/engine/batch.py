"""One step's work as values: the flat batch that goes through the model, and where each sequence's memory lies.

In: what the scheduler chose. Out: what a `Runner` needs, and nothing else.
Not here: requests, sampling, who owns the blocks.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from puna.engine.blocks import Table


class Entry(NamedTuple):
    """New tokens of one sequence in this step, neighbours in the flat batch. Its blocks reach to the last of them."""

    n_new: int
    start: int  # position of the first new token
    global_blocks: Sequence[int]  # of the pool of global layers; position p lies in global_blocks[p // block_len]
    chunk_blocks: Sequence[int]  # of that of chunked layers; p lies in chunk_blocks[(p - chunk_base) // block_len]
    chunk_base: int  # first position of the chunk that `start` lies in; 0 without chunks
    adapter: int = -1  # its number on the shelf; -1: none


class Batch(NamedTuple):
    """Tokens that go through the model together: those of each entry, one entry after the other.

    ids and positions int64 [T]; features [M D] belong to the patch ids in order, None without any; wanted int64 [R] are
    the rows of the batch whose logits are needed, ascending. `routes` int32 [L T k] is room on the processor for the
    experts that each layer chooses, None where nobody asks; rows of dense layers stay as they are.
    """

    ids: Tensor
    positions: Tensor
    features: Tensor | None
    entries: Sequence[Entry]
    wanted: Tensor
    routes: Tensor | None = None


def assemble(
    pieces: Sequence[tuple[Table, Sequence[int]]],
    features: Tensor | None,
    wanted: Sequence[int],
    device: torch.device,
    adapters: Sequence[int] | None = None,
) -> Batch:
    """Returns the batch in which each table's sequence reads the ids beside it, for which it has blocks already.

    `adapters` are the numbers of each sequence's, -1 for none; None: no sequence has any.
    """
    entries: list[Entry] = []
    ids: list[int] = []
    positions: list[int] = []
    numbers = repeat(-1) if adapters is None else adapters
    for (table, new), adapter in zip(pieces, numbers, strict=False):
        entries.append(
            Entry(len(new), table.length, table.global_blocks, table.chunk_blocks, table.chunk_base, adapter)
        )
        ids += new
        positions += range(table.length, table.length + len(new))
    return Batch(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        features=features,
        entries=entries,
        wanted=torch.tensor(wanted, device=device, dtype=torch.int64),
    )


def adapters_of(batch: Batch) -> Tensor:
    """Returns the number of each row's adapter, int64 [T]; -1 for none."""
    numbers = [entry.adapter for entry in batch.entries for _ in range(entry.n_new)]
    return torch.tensor(numbers, device=batch.ids.device)
