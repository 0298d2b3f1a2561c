"""Rows of packed documents in a seeded order, so that any step's batch can be made again from one small value.

In: a `Store`. Out: batches of fixed shape, each with the `DataState` behind it. Sample k of epoch e is a pure function
of the seed, e and k; which samples share a row is a pure function of the state before. Nothing else is remembered, so a
run may stop anywhere. Documents are never cut, unless they are longer than a row; pictures never are.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.train.store import Store

PADDING = -1
"""The document number of tokens that fill up a row."""

Ints = NDArray[np.int64]


class DataState(NamedTuple):
    """How far a run has read: the next sample is number `sample` of `epoch`; those `waiting` were drawn and not yet
    packed, oldest first."""

    epoch: int = 0
    sample: int = 0
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of packed documents, shapes fixed for a run.

    ids, positions (within the document), documents (number within the row, PADDING behind the last) and targets int64
    [B S]; weights float32 [B S]: that of the target, 0 where nothing is learnt. tiles uint8 [I 3 S S]: those of the
    patch tokens in flat order, then blank ones. pieces[b] are the numbers of the pieces of row b, in order: a piece is
    a document or a part of one, or as many documents as a packer keeps together.
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    targets: Tensor
    weights: Tensor
    tiles: Tensor
    n_tiles: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents != PADDING).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch with its tensors on a device."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What is packed: documents, parts of those that are longer than a row, or several that stay together. int64, one
    entry per piece: (first) document, first token and number of tokens in the store, first entry and number of
    tile_refs, source."""

    document: Ints
    start: Ints
    length: Ints
    first_tile: Ints
    n_tiles: Ints
    source: Ints


def cut_documents(store: Store, row_len: int, config: LlamaConfig) -> Pieces:
    """Returns the pieces of all documents, each at most `row_len` tokens, cut between but never inside images.

    Raises ConfigError naming a document whose picture alone is longer than a row.
    """
    columns: list[tuple[int, int, int, int, int, int]] = []
    lengths = np.diff(store.offsets)
    n_tiles = np.diff(store.tile_offsets)
    for i in range(store.n_documents):
        start, first_tile, source = int(store.offsets[i]), int(store.tile_offsets[i]), int(store.sources[i])
        if lengths[i] <= row_len:
            columns.append((i, start, int(lengths[i]), first_tile, int(n_tiles[i]), source))
            continue
        ids = np.asarray(store.ids[start : start + lengths[i]])
        for a, b in _cuts(ids, row_len, config, store.names[i]):
            tiles = (
                0
                if config.vision is None
                else int((ids[a:b] == config.patch_id).sum()) // config.vision.tokens_per_tile
            )
            columns.append((i, start + a, b - a, first_tile, tiles, source))
            first_tile += tiles
    return Pieces(
        **{
            name: np.asarray([column[i] for column in columns], dtype=np.int64)
            for i, name in enumerate(("document", "start", "length", "first_tile", "n_tiles", "source"))
        }
    )


def join_documents(store: Store, row_len: int, together: int) -> Pieces:
    """Returns as pieces each `together` documents that follow one another, such as the two answers of a preference.

    Raises ConfigError naming one that is longer than a row.
    """
    firsts = np.arange(0, store.n_documents, together)
    ends = firsts + together
    lengths = store.offsets[ends] - store.offsets[firsts]
    for i in np.flatnonzero(lengths > row_len):
        raise ConfigError(
            f"batch.row_len: {row_len} is less than {store.names[firsts[i]]} needs, {lengths[i]}; raise it"
        )
    return Pieces(
        document=firsts,
        start=store.offsets[firsts],
        length=lengths,
        first_tile=store.tile_offsets[firsts],
        n_tiles=store.tile_offsets[ends] - store.tile_offsets[firsts],
        source=store.sources[firsts],
    )


class Order:
    """The order of samples. Source s is seen passes[s] times per epoch on average, its pieces equally often."""

    def __init__(self, sources: Ints, passes: Sequence[float], seed: int) -> None:
        """sources int64, one per piece; passes per source number. Raises ConfigError when an epoch would be empty."""
        self.members = [np.flatnonzero(sources == s) for s in range(len(passes))]
        self.passes = passes
        self.seed = seed
        self._cached: tuple[int, Ints] | None = None
        if not any(int(p * len(m)) for p, m in zip(passes, self.members, strict=True)):
            raise ConfigError(f"data.passes: {list(passes)} leaves no document in an epoch; raise a source's passes")

    def epoch(self, number: int) -> Ints:
        """Returns the pieces of an epoch in the order in which they are seen, a pure function of seed and number."""
        if self._cached is None or self._cached[0] != number:
            parts = [self._of_source(s, number) for s in range(len(self.passes))]
            drawn = np.concatenate(parts)
            self._cached = number, drawn[_permutation(len(drawn), self.seed, 0, number)]
        return self._cached[1]

    def _of_source(self, source: int, epoch: int) -> Ints:
        """A source is an endless line of shuffled rounds through its pieces; each epoch takes the next stretch."""
        members, passes = self.members[source], self.passes[source]
        if not len(members):
            return members
        places = np.arange(int(epoch * passes * len(members)), int((epoch + 1) * passes * len(members)))
        rounds = places // len(members)
        drawn = [
            members[_permutation(len(members), self.seed, source + 1, r)][places[rounds == r] % len(members)]
            for r in np.unique(rounds)
        ]
        return np.concatenate(drawn) if drawn else members[:0]


class Packer:
    """Makes batches of one shape from a store; has no state of its own."""

    def __init__(
        self,
        store: Store,
        config: LlamaConfig,
        *,
        rows: int,
        row_len: int,
        tiles: int,
        window: int,
        seed: int,
        passes: Mapping[str, float],
        together: int = 1,
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        """together: so many documents that follow one another share a row. kept: which documents are seen at all, bool
        [n]; None: all.

        Raises ConfigError when a piece needs more tiles than a batch holds, or `passes` names an unknown source.
        """
        self.store = store
        self.rows, self.row_len, self.tiles, self.window = rows, row_len, tiles, window
        self.pad_id = config.pad_id
        self.together = together
        pieces = cut_documents(store, row_len, config) if together == 1 else join_documents(store, row_len, together)
        self.pieces = pieces if kept is None else _only(pieces, kept[pieces.document])
        for source in passes:
            if source not in store.source_names:
                known = ", ".join(store.source_names)
                raise ConfigError(f"data.passes.{source}: no document has this source; the sources are {known}")
        most = int(self.pieces.n_tiles.max(initial=0))
        if most > tiles:
            raise ConfigError(
                f"batch.tiles: {tiles} is too few, one document has {most} tiles; raise it to {most} or more"
            )
        self.order = Order(self.pieces.source, [passes.get(name, 1.0) for name in store.source_names], seed)

    def next(self, state: DataState) -> tuple[Batch, DataState]:
        """Returns the batch that follows `state`, and the state behind it."""
        rows, state = self.draw(state)
        return self.make(rows), state

    def draw(self, state: DataState) -> tuple[list[list[int]], DataState]:
        """Returns the pieces of each row of the batch that follows `state`, and the state behind it."""
        drawn, epoch, index = self._draw(state)
        rows, waiting = self._arrange(drawn)
        return rows, DataState(epoch, index, tuple(waiting))

    def make(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Returns the batch whose row b holds the pieces rows[b]; missing rows and the rest of each row are padding.

        Raises WeightsError where a document is damaged on disk."""
        shape = (self.rows, self.row_len)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING, dtype=np.int64)
        targets = np.full(shape, self.pad_id, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        tile_refs: list[int] = []
        for b, row in enumerate(rows):
            at = 0
            for d, (start, n) in enumerate(self._stretches(row)):
                stop = at + n
                ids[b, at:stop] = self.store.ids[start : start + n]
                positions[b, at:stop] = np.arange(n)
                documents[b, at:stop] = d
                targets[b, at : stop - 1] = ids[b, at + 1 : stop]
                weights[b, at : stop - 1] = self.store.weights[start + 1 : start + n]
                at = stop
            for piece in row:
                for i in range(self.together):
                    self.store.check(int(self.pieces.document[piece]) + i)
                first = int(self.pieces.first_tile[piece])
                tile_refs += self.store.tile_refs[first : first + int(self.pieces.n_tiles[piece])].tolist()
            positions[b, at:] = np.arange(self.row_len - at)
        tiles = np.zeros((self.tiles, *self.store.tiles.shape[1:]), dtype=np.uint8)
        if tile_refs:
            tiles[: len(tile_refs)] = self.store.tiles[tile_refs]
        return Batch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            documents=torch.from_numpy(documents),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            tiles=torch.from_numpy(tiles),
            n_tiles=len(tile_refs),
            pieces=tuple(tuple(int(piece) for piece in row) for row in rows),
        )

    def once(self) -> Iterator[Batch]:
        """Yields batches that hold each piece exactly once, in order: for measuring."""
        waiting: Sequence[int] = range(len(self.pieces.length))
        while waiting:
            rows, rest = self._arrange(waiting[: self.window])
            waiting = [*rest, *waiting[self.window :]]
            yield self.make(rows)

    def document_of(self, row: Sequence[int], d: int) -> int:
        """Returns which document of the store is number `d` of a row of pieces."""
        return int(self.pieces.document[row[d // self.together]]) + d % self.together

    def _stretches(self, row: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yields first token and number of tokens of each document, or part of one, of a row."""
        for piece in row:
            if self.together == 1:
                yield int(self.pieces.start[piece]), int(self.pieces.length[piece])
                continue
            first = int(self.pieces.document[piece])
            for i in range(first, first + self.together):
                yield int(self.store.offsets[i]), int(self.store.offsets[i + 1] - self.store.offsets[i])

    def names(self, batch: Batch) -> list[str]:
        """Returns the ids of the documents in a batch, for messages."""
        return [self.store.names[self.pieces.document[piece]] for row in batch.pieces for piece in row]

    def _draw(self, state: DataState) -> tuple[list[int], int, int]:
        """Fills the waiting samples up to the window."""
        waiting, epoch, index = list(state.waiting), state.epoch, state.sample
        while len(waiting) < self.window:
            order = self.order.epoch(epoch)
            taken = order[index : index + self.window - len(waiting)]
            waiting += taken.tolist()
            index += len(taken)
            if index >= len(order):
                epoch, index = epoch + 1, 0
        return waiting, epoch, index

    def _arrange(self, waiting: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """Returns the pieces of each row and those left over, in their order.

        A row takes the oldest piece that fits, so that nothing waits for long; its last quarter takes the longest that
        fits, so that little is lost.
        """
        numbers = np.asarray(waiting, dtype=np.int64)
        lengths, n_tiles = self.pieces.length[numbers].copy(), self.pieces.n_tiles[numbers]
        tiles_left = self.tiles
        rows: list[list[int]] = []
        for _ in range(self.rows):
            space, row = self.row_len, []
            while True:
                fits = np.flatnonzero((lengths <= space) & (n_tiles <= tiles_left))
                if not len(fits):
                    break
                best = int(fits[0] if space > self.row_len // 4 else fits[np.argmax(lengths[fits])])
                row.append(int(numbers[best]))
                space -= int(lengths[best])
                tiles_left -= int(n_tiles[best])
                lengths[best] = self.row_len + 1  # taken: fits nowhere any more
            rows.append(row)
        return rows, numbers[lengths <= self.row_len].tolist()


class Prefetch:
    """Makes the next batches on a thread while the present one is used. A context manager: leaving ends the thread.

    Of every `readers` batches in order only number `reader` is made here; the others are other ranks', which read the
    same documents in the same order, whatever their number.
    """

    def __init__(self, packer: Packer, state: DataState, *, reader: int = 0, readers: int = 1, ahead: int = 2) -> None:
        self._queue: queue.Queue[tuple[Batch, DataState] | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(packer, state, reader, readers), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join()

    def next(self) -> tuple[Batch, DataState]:
        """Returns this reader's next batch and the state behind the last reader's; raises what making it raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _fill(self, packer: Packer, state: DataState, reader: int, readers: int) -> None:
        while not self._stop.is_set():
            try:
                drawn = []
                for _ in range(readers):
                    rows, state = packer.draw(state)
                    drawn.append(rows)
                batch = packer.make(drawn[reader])
            except Exception as error:  # handed to the thread that asks for batches
                self._put(error)
                return
            self._put((batch, state))

    def _put(self, item: tuple[Batch, DataState] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


class PackedFeed:
    """The batches of a packer, as the loop reads them: made ahead, the same for any number of readers."""

    def __init__(self, packer: Packer, digest: str) -> None:
        self.packer, self.digest = packer, digest

    def opened(self, state: DataState, reader: int, readers: int) -> Prefetch:
        """Returns the batches behind `state`; of every `readers` in order, number `reader`."""
        return Prefetch(self.packer, state, reader=reader, readers=readers)

    def names(self, batch: Batch) -> list[str]:
        """Returns the ids of the documents in a batch."""
        return self.packer.names(batch)


def _only(pieces: Pieces, kept: NDArray[np.bool_]) -> Pieces:
    return Pieces(**{each.name: getattr(pieces, each.name)[kept] for each in fields(pieces)})


def _permutation(n: int, *key: int) -> Ints:
    """Returns a permutation of 0..n-1 that depends on the key alone."""
    shuffled: Ints = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(n)
    return shuffled


def _cuts(ids: NDArray[Any], row_len: int, config: LlamaConfig, name: str) -> Iterator[tuple[int, int]]:
    """Yields stretches of at most `row_len` tokens that cover `ids`; one that would end within an image ends before."""
    inside = np.zeros(len(ids) + 1, dtype=bool)  # inside[i]: a cut before token i would split an image
    if config.vision is not None:
        opened = np.cumsum(ids == config.image_start_id) - np.cumsum(ids == config.image_end_id)
        inside[1:-1] = opened[:-1] > 0
    start = 0
    while start < len(ids):
        stop = min(start + row_len, len(ids))
        while stop > start and inside[stop]:
            stop -= 1
        if stop == start:
            raise ConfigError(f"batch.row_len: {row_len} is shorter than a picture of document {name}; raise it")
        yield start, stop
        start = stop
