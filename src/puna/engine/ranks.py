"""One engine over several ranks: rank 0 runs it; the others do to their share of the model what it does to its own.

In, on rank 0: what an engine asks of model, cache and runner. Out, on all other ranks: the same work in the same order,
because rank 0 announces each piece of it (`Call`) before it begins. Requests, scheduling, prefixes, sampling and clocks
exist on rank 0 alone.
Not here: how a model is divided and what ranks exchange within a step (`parallel`). Why one leads: docs/decisions/009.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum, auto
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from puna.engine.batch import Batch, Entry
from puna.engine.blocks import KINDS, Counts, Kind, Layout
from puna.engine.cache import KV_DTYPES, KVCache, block_bytes
from puna.errors import DeviceError
from puna.model.transformer import Llama
from puna.parallel import Mesh, Share, ShareOfLlama

_DTYPES = tuple(KV_DTYPES.values())


class Call(IntEnum):
    """What rank 0 announces, with the numbers that follow."""

    END = auto()  # no more calls
    MAKE = auto()  # cache, n_global, n_chunked, dtype: a new cache
    FREE = auto()  # cache
    COPY = auto()  # cache, kind, source, target
    READ = auto()  # cache, kind, block
    WRITE = auto()  # cache, kind, block; then contents
    RUN = auto()  # cache, n_features, the batch; then features
    EMBED = auto()  # the shape of the tiles; then tiles


class Runner(Protocol):
    """As in `engine.runner`."""

    def run(self, batch: Batch) -> Tensor: ...


class Leader:
    """Announces what rank 0 does, one call at a time, whatever thread it comes from."""

    def __init__(self, mesh: Mesh) -> None:
        self.freed: deque[int] = deque()  # caches that nobody holds any more
        self._mesh = mesh
        self._lock = threading.RLock()
        self._n_caches = 0
        self._is_over: str | None = None

    @contextmanager
    def calling(self, call: Call, *numbers: int) -> Iterator[None]:
        """Announces a call; the block then does it. Raises DeviceError when ranks cannot be called any more.

        If the block fails, the others wait for a part that never comes, so that was the last call.
        """
        with self._lock:
            if self._is_over is not None:
                raise DeviceError(f"ranks: {self._is_over}; restart all")
            while self.freed:
                self._mesh.say([Call.FREE, self.freed.popleft()])
            self._mesh.say([call, *numbers])
            try:
                yield
            except BaseException as error:
                self._is_over = f"a step failed half-way ({type(error).__name__})"
                raise

    def number(self) -> int:
        """Returns the number of a new cache."""
        self._n_caches += 1
        return self._n_caches

    def end(self) -> None:
        """Lets the other ranks go, as far as they are there. Nothing can be asked of the model after it."""
        with self._lock:
            if self._is_over is None:
                self._is_over = "they were let go"
                with suppress(DeviceError):
                    self._mesh.say([Call.END])


class LeadingLlama(ShareOfLlama):
    """The share of rank 0, which an engine takes for the whole model."""

    def __init__(self, share: Share, mesh: Mesh) -> None:
        super().__init__(share, mesh)
        self.leader = Leader(mesh)

    def embed_tiles(self, tiles: Tensor) -> Tensor:
        with self.leader.calling(Call.EMBED, *tiles.shape):
            return super().embed_tiles(self.mesh.from_leader(tiles.float().contiguous()))


class ShareOfCache(KVCache):
    """Keys and values of the heads and layers of one rank. All ranks call `read` and `write` together."""

    def __init__(self, model: ShareOfLlama, counts: Counts, dtype: torch.dtype) -> None:
        text, device = model.share.config.text, model.norm.weight.device
        layout = Layout.of(model.share.whole.text)  # a stage may have layers of one kind only
        super().__init__(text, counts, dtype=dtype, device=device, layout=layout)
        self.mesh = model.mesh
        self._content_bytes = {kind: max(_content_bytes(model, kind, dtype)) for kind in KINDS}

    def read(self, kind: Kind, block: int) -> bytes:
        """Returns the contents of a block on all ranks, one after the other, each as long as the longest."""
        own = super().read(kind, block) if self._parts(kind) else b""
        padded = torch.frombuffer(bytearray(own.ljust(self._content_bytes[kind], b"\0")), dtype=torch.uint8)
        padded = padded.to(self.keys[0].device)
        return self.mesh.join_rows(padded[None]).cpu().numpy().tobytes()

    def write(self, kind: Kind, block: int, content: bytes) -> None:
        """Gives a block the contents that `read` returned; only those of rank 0 count."""
        n_bytes, n_ranks = self._content_bytes[kind], self.mesh.layout.world
        contents = torch.frombuffer(bytearray(content or n_bytes * n_ranks), dtype=torch.uint8)
        mine = self.mesh.from_leader(contents.to(self.keys[0].device))[n_bytes * self.mesh.rank :]
        parts = self._parts(kind)
        n_own = sum(part[0].numel() for part in parts)
        if n_own:
            super().write(kind, block, mine[:n_own].cpu().numpy().tobytes())


class LeadingCache(ShareOfCache):
    """The part of rank 0, which an engine takes for the whole cache. The others make and free theirs with it."""

    def __init__(self, model: LeadingLlama, counts: Counts, dtype: torch.dtype) -> None:
        self.leader = model.leader
        self.number = self.leader.number()
        with self.leader.calling(Call.MAKE, self.number, *counts, _DTYPES.index(dtype)):
            super().__init__(model, counts, dtype)
        weakref.finalize(self, self.leader.freed.append, self.number).atexit = False

    def copy(self, kind: Kind, source: int, target: int) -> None:
        with self.leader.calling(Call.COPY, self.number, KINDS.index(kind), source, target):
            super().copy(kind, source, target)

    def read(self, kind: Kind, block: int) -> bytes:
        with self.leader.calling(Call.READ, self.number, KINDS.index(kind), block):
            return super().read(kind, block)

    def write(self, kind: Kind, block: int, content: bytes) -> None:
        with self.leader.calling(Call.WRITE, self.number, KINDS.index(kind), block):
            super().write(kind, block, content)


class LeadingRunner:
    """Runs a step on all ranks: `runner` is that of rank 0's share."""

    def __init__(self, runner: Runner, cache: LeadingCache) -> None:
        self._runner = runner
        self._cache = cache

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        features, leader = batch.features, self._cache.leader
        n_features = 0 if features is None else len(features)
        with leader.calling(Call.RUN, self._cache.number, n_features, *numbers_of(batch)):
            if features is not None:
                self._cache.mesh.from_leader(features.contiguous())
            return self._runner.run(batch)


def cache_for(model: Llama, counts: Counts, dtype: torch.dtype) -> KVCache:
    """Returns new keys and values for a model; of one that several ranks share, on each of them its part."""
    if isinstance(model, LeadingLlama):
        return LeadingCache(model, counts, dtype)
    return KVCache(model.config.text, counts, dtype=dtype, device=model.embedding.weight.device)


def bytes_together(model: Llama, n_bytes: int) -> int:
    """Returns how many bytes of a whole cache there is room for where each rank of `model` has room for `n_bytes`."""
    if not isinstance(model, ShareOfLlama):
        return n_bytes
    whole = model.share.whole.text
    shrunk = (
        (block_bytes(whole, kind, torch.float32), max(_content_bytes(model, kind, torch.float32))) for kind in KINDS
    )
    return min(n_bytes * all_bytes // own_bytes for all_bytes, own_bytes in shrunk if own_bytes)


@torch.inference_mode()
def follow(model: ShareOfLlama, runner_of: Callable[[Llama, KVCache], Runner]) -> None:
    """Does what rank 0 announces, until it lets this rank go. Raises DeviceError when a rank is lost."""
    caches: dict[int, ShareOfCache] = {}
    runners: dict[int, Runner] = {}
    mesh, weight = model.mesh, model.norm.weight
    while True:
        call, *numbers = mesh.hear()
        if call == Call.END:
            return
        if call == Call.EMBED:
            model.embed_tiles(mesh.from_leader(torch.empty(numbers, device=weight.device)))
            continue
        number, *rest = numbers
        if call == Call.MAKE:
            n_global, n_chunked, dtype = rest
            caches[number] = ShareOfCache(model, Counts(n_global, n_chunked), _DTYPES[dtype])
            runners[number] = runner_of(model, caches[number])
        elif call == Call.FREE:
            del caches[number], runners[number]
        elif call == Call.COPY:
            caches[number].copy(KINDS[rest[0]], *rest[1:])
        elif call == Call.READ:
            caches[number].read(KINDS[rest[0]], rest[1])
        elif call == Call.WRITE:
            caches[number].write(KINDS[rest[0]], rest[1], b"")
        elif call == Call.RUN:
            n_features, *flat = rest
            features = mesh.from_leader(weight.new_empty(n_features, len(weight))) if n_features else None
            runners[number].run(batch_of(flat, features, weight.device))
        else:
            raise AssertionError(f"rank 0 announces {call}, which nobody knows")


def numbers_of(batch: Batch) -> list[int]:
    """Returns all of a batch but its features as numbers. Positions follow from the entries."""
    numbers = [len(batch.ids), len(batch.wanted), *batch.ids.tolist(), *batch.wanted.tolist()]
    for entry in batch.entries:
        lens = len(entry.global_blocks), len(entry.chunk_blocks)
        numbers += (entry.n_new, entry.start, entry.chunk_base, entry.adapter, *lens)
        numbers += (*entry.global_blocks, *entry.chunk_blocks)
    return numbers


def batch_of(numbers: Sequence[int], features: Tensor | None, device: torch.device) -> Batch:
    """Returns the batch that `numbers_of` was given."""
    stream = iter(numbers)
    n_ids, n_wanted = _take(stream, 2)
    ids, wanted = _take(stream, n_ids), _take(stream, n_wanted)
    entries: list[Entry] = []
    while head := _take(stream, 6):
        n_new, start, chunk_base, adapter, n_global, n_chunked = head
        entries.append(Entry(n_new, start, _take(stream, n_global), _take(stream, n_chunked), chunk_base, adapter))
    positions = [position for entry in entries for position in range(entry.start, entry.start + entry.n_new)]
    return Batch(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        features=features,
        entries=entries,
        wanted=torch.tensor(wanted, device=device, dtype=torch.int64),
    )


def _take(stream: Iterator[int], n: int) -> list[int]:
    return list(islice(stream, n))


def _content_bytes(model: ShareOfLlama, kind: Kind, dtype: torch.dtype) -> list[int]:
    """Returns the bytes of a block on each rank."""
    whole, layout = model.share.whole, model.share.layout
    block_len = Layout.of(whole.text).block_len
    texts = [Share(whole, layout, rank).config.text for rank in range(layout.world)]
    return [block_bytes(text, kind, dtype) // Layout.of(text).block_len * block_len for text in texts]
