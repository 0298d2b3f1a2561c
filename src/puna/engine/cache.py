"""What a model remembers of the sequences it reads: keys and values of every layer, as far as a later token may look.

In: keys and values of new tokens, layer by layer. Out: their attention over everything remembered. A global layer
remembers all positions. A chunked layer never holds more than the chunk being read: a token at position p lies in
slot p mod chunk_len, so the first token of a chunk overwrites the first of the chunk before, which nobody can see any
more. Storage is contiguous per sequence and layer and doubles when full.
Not here: which sequences run (`engine`), the arithmetic of attention (`kernels.attention`), sharing between
sequences.

Source of the chunk rule: meta-llama/llama-models `models/llama4/model.py`; query i sees key j iff j <= i and both lie
in the same chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puna.config import TextConfig
from puna.kernels.attention import attend_causal
from puna.shapes import sizes

_FIRST_SLOTS = 64


class SequenceCache:
    """Keys and values of one sequence in all layers. `length` tokens have been read: the position of the next."""

    def __init__(self, config: TextConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty((2, 0, config.n_kv_heads, config.head_dim), dtype=dtype, device=device)
        self.length = 0
        self._chunk_lens = tuple(config.chunk_len_of(layer) for layer in range(config.n_layers))
        self._slots = [empty] * config.n_layers  # per layer: 2 (keys, values) S K H

    def chunk_len_of(self, layer: int) -> int | None:
        return self._chunk_lens[layer]

    @property
    def n_bytes(self) -> int:
        """Bytes of storage taken, free slots included."""
        return sum(slots.numel() * slots.element_size() for slots in self._slots)

    def write(self, layer: int, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `k` and `v` [T K H] from `slot` on. Returns all keys and all values up to and with them, each [S K H].

        The result is a view of the storage: it is good until the next write to this layer.
        """
        T, _, _ = sizes(k, "T K H")
        stored = self._grown(layer, slot + T)
        stored[0, slot : slot + T] = k
        stored[1, slot : slot + T] = v
        return stored[0, : slot + T], stored[1, : slot + T]

    def fork(self) -> "SequenceCache":
        """Returns an independent copy, so that several samples can go on from one prompt."""
        twin = object.__new__(SequenceCache)
        twin.length = self.length
        twin._chunk_lens = self._chunk_lens
        twin._slots = [slots.clone() for slots in self._slots]
        return twin

    def _grown(self, layer: int, n_slots: int) -> Tensor:
        stored = self._slots[layer]
        capacity = stored.shape[1]
        if n_slots <= capacity:
            return stored
        wanted = max(n_slots, 2 * capacity, _FIRST_SLOTS)
        chunk_len = self._chunk_lens[layer]
        grown = stored.new_empty((2, wanted if chunk_len is None else min(wanted, chunk_len), *stored.shape[2:]))
        grown[:, :capacity] = stored
        self._slots[layer] = grown
        return grown


class _Piece(NamedTuple):
    """New tokens of one sequence and one chunk: rows `first` to `last` of the flat batch, stored from `slot` on."""

    cache: SequenceCache
    first: int
    last: int
    slot: int


class BatchCache:
    """The `KVStore` of one forward over a flat batch: each sequence's new tokens, one sequence after the other.

    `entries` pairs every sequence with how many new tokens it has, in the order of the batch; prompts, pieces of
    prompts and single tokens may mix. Call `advance` after the forward. A forward that failed leaves its sequences
    unusable.
    """

    def __init__(self, entries: Sequence[tuple[SequenceCache, int]]) -> None:
        assert len({id(cache) for cache, _ in entries}) == len(entries), "a sequence may appear once in a batch"
        assert all(n_new > 0 for _, n_new in entries), "a sequence in a batch has new tokens"
        self._entries = tuple(entries)
        self._pieces: dict[int | None, list[_Piece]] = {}

    def positions(self) -> list[int]:
        """Returns the position of every token of the flat batch."""
        return [cache.length + i for cache, n_new in self._entries for i in range(n_new)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the attention [T N H] of the batch's queries [T N H]; remembers its keys and values, each [T K H].

        Pieces of one sequence run in order, so when one begins a chunk the chunk before it has been read to its end.
        """
        sizes(q, "T N H")
        attended = torch.empty_like(q)
        for piece in self._pieces_of(layer):
            rows = slice(piece.first, piece.last)
            keys, values = piece.cache.write(layer, piece.slot, k[rows], v[rows])
            attended[rows] = attend_causal(q[rows], keys, values)
        return attended  # T N H

    def advance(self) -> None:
        """Counts the batch's tokens as read: call once, after the forward."""
        for cache, n_new in self._entries:
            cache.length += n_new

    def _pieces_of(self, layer: int) -> list[_Piece]:
        chunk_len = self._entries[0][0].chunk_len_of(layer)
        if chunk_len not in self._pieces:
            self._pieces[chunk_len] = _cut(self._entries, chunk_len)
        return self._pieces[chunk_len]


def _cut(entries: Sequence[tuple[SequenceCache, int]], chunk_len: int | None) -> list[_Piece]:
    """Returns the flat batch cut at every sequence border and, with a `chunk_len`, at every chunk border."""
    pieces = []
    row = 0
    for cache, n_new in entries:
        position, end = cache.length, cache.length + n_new
        while position < end:
            slot = position if chunk_len is None else position % chunk_len
            n = end - position if chunk_len is None else min(end - position, chunk_len - slot)
            pieces.append(_Piece(cache, row, row + n, slot))
            row, position = row + n, position + n
    return pieces
