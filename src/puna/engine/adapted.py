"""Batches in which some sequences have an adapter: what corrects which row, and two runners that share such a batch.

In: a batch. Out: the `Deltas` of its rows; or logits, from a fast runner that knows no adapters for sequences without
one, which get what they get alone, and from the plain one for the others. A sequence always meets the same runner, so
that each may have an order of its own for keys and values.
Not here: what an adapter adds (`adapters.shelf`). Why two forwards: docs/decisions/019.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from puna.engine.batch import Batch, Entry, adapters_of
from puna.model.deltas import Deltas, Shelf


class Runner(Protocol):
    """As in `engine.runner`."""

    def run(self, batch: Batch) -> Tensor: ...


class SplitRunner:
    """Runs sequences without an adapter through `fast`, the others through `plain`."""

    def __init__(self, fast: Runner, plain: Runner, patch_id: int | None) -> None:
        self.fast, self._plain, self._patch_id = fast, plain, patch_id

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        has = [entry.adapter >= 0 for entry in batch.entries]
        if not any(has):
            return self.fast.run(batch)
        if all(has):
            return self._plain.run(batch)
        rows = adapters_of(batch) >= 0  # T
        parts = [(self.fast, _part(batch, ~rows, self._patch_id)), (self._plain, _part(batch, rows, self._patch_id))]
        logits = [runner.run(part) for runner, part in parts]
        if batch.routes is not None:
            for of_part, (_, part) in zip((~rows, rows), parts, strict=True):
                assert part.routes is not None, "who asks for all routes asks for those of both parts"
                batch.routes[:, of_part.to(batch.routes.device)] = part.routes
        is_second = rows[batch.wanted]  # R
        together = logits[0].new_empty(len(is_second), logits[0].shape[1])
        together[~is_second], together[is_second] = logits
        return together  # R V


def deltas_of(batch: Batch, shelf: Shelf | None) -> Deltas | None:
    """Returns what corrects the rows of a batch; None where no row has an adapter."""
    if shelf is None or all(entry.adapter < 0 for entry in batch.entries):
        return None
    return shelf.deltas(adapters_of(batch))


def _part(batch: Batch, rows: Tensor, patch_id: int | None) -> Batch:
    """Returns the rows of a batch that are true, whole entries of it. rows bool [T]."""
    features = batch.features
    if features is not None:
        is_patch = batch.ids.eq(-1 if patch_id is None else patch_id)  # T
        own = rows[is_patch]
        features = features[: len(own)][own] if own.any() else None
    firsts = torch.tensor([entry.n_new for entry in batch.entries]).cumsum(0).tolist()
    entries: Sequence[Entry] = [e for e, end in zip(batch.entries, firsts, strict=True) if rows[end - 1]]
    places = rows.cumsum(0) - 1  # T: where a row is in the part
    wanted = batch.wanted[rows[batch.wanted]]
    return Batch(
        ids=batch.ids[rows],
        positions=batch.positions[rows],
        features=features,
        entries=entries,
        wanted=places[wanted],
        routes=None if batch.routes is None else batch.routes[:, rows.to(batch.routes.device)].contiguous(),
    )
