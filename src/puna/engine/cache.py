"""What a model remembers of the texts it reads: keys and values in blocks, and attention over them.

In: keys and values of new tokens, layer by layer. Out: their attention over everything that they may see. A global
layer remembers all positions of a sequence, a chunked one only those of the chunk being read; `engine/blocks` says
which block holds which positions. Numbers are kept as the model makes them, or in 8 bits with a scale for each
position and head.
Not here: which sequences run and who owns which block, the arithmetic of attention (`kernels.attention`).

Source of the chunk rule: meta-llama/llama-models `models/llama4/model.py`; query i sees key j iff j <= i and both lie
in the same chunk. Why blocks: docs/decisions/008.
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puna.config import TextConfig
from puna.engine.batch import Entry
from puna.engine.blocks import KINDS, Counts, Kind, Layout
from puna.errors import CapacityError, ConfigError
from puna.kernels.attention import Stored, attend_causal, attend_paged, head_rows, write_paged
from puna.shapes import sizes

KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}

_CHUNKS_A_SEQUENCE = 4  # one that it reads; more for steps that pass borders, and for prefixes that are remembered

_SCALE_BYTES = 4  # float32, for a key and for a value of 8-bit numbers


def block_bytes(config: TextConfig, kind: Kind, dtype: torch.dtype) -> int:
    """Returns the bytes of one block: keys and values of `block_len` positions in all layers of its kind."""
    row_bytes = config.head_dim * dtype.itemsize + (_SCALE_BYTES if _is_small(dtype) else 0)
    n_layers = sum(kind_of(config, layer) == kind for layer in range(config.n_layers))
    return n_layers * 2 * config.n_kv_heads * row_bytes * Layout.of(config).block_len


def pool_bytes(config: TextConfig, counts: Counts, dtype: torch.dtype) -> int:
    """Returns the bytes of so many blocks."""
    return sum(counts.of(kind) * block_bytes(config, kind, dtype) for kind in KINDS)


def sequence_bytes(config: TextConfig, length: int, dtype: torch.dtype) -> int:
    """Returns the bytes that a sequence takes between steps when `length` positions are stored.

    For whole blocks this is length * (bytes a token in global layers) + (length in its chunk) * (bytes a token in
    chunked layers), the formula of the model card: 49152 bytes a token and at most 1.21 GB more for Scout in bfloat16.
    """
    return pool_bytes(config, Layout.of(config).held(length), dtype)


def share_out(config: TextConfig, dtype: torch.dtype, kv_bytes: int, max_sequences: int) -> Counts:
    """Returns how many blocks of each kind `kv_bytes` bytes make.

    Chunked layers get a few chunks for each of `max_sequences` sequences, at most half of the bytes and at least one
    whole chunk; global layers get the rest, as far as those sequences can use it. Raises CapacityError when one chunk
    does not fit.
    """
    layout, longest = Layout.of(config), config.context_len
    peak = layout.peak(longest)
    most = Counts(max_sequences * peak.n_global, max_sequences * peak.n_chunked * _CHUNKS_A_SEQUENCE)
    of_global, of_chunked = (block_bytes(config, kind, dtype) for kind in KINDS)
    n_chunked = 0
    if most.n_chunked:
        half = kv_bytes // 2 if layout.has_global else kv_bytes
        n_chunked = min(most.n_chunked, max(half // of_chunked, peak.n_chunked))
    left = kv_bytes - n_chunked * of_chunked
    n_global = min(most.n_global, left // of_global) if layout.has_global else 0
    if left < (of_global if layout.has_global else 0):
        least = pool_bytes(config, Counts(int(layout.has_global), peak.n_chunked), dtype)
        raise CapacityError(f"kv_bytes is {kv_bytes}: keys and values of this model need at least {least}")
    return Counts(n_global, n_chunked)


def spare_bytes(device: torch.device) -> int:
    """Returns how much memory keys and values take unless somebody says otherwise.

    On a GPU nine tenths of what is free now; else a quarter of the machine's memory, which is only taken as it is used.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * 9 // 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def kind_of(config: TextConfig, layer: int) -> Kind:
    """Returns which pool a layer's blocks are in."""
    return "global" if config.chunk_len_of(layer) is None else "chunked"


def kv_dtype(name: str | None, model_dtype: torch.dtype) -> torch.dtype:
    """Returns the number format of keys and values by its name; None is the model's own. Raises ConfigError."""
    if name is None:
        return model_dtype
    if name not in KV_DTYPES:
        raise ConfigError(f"kv_dtype is {name!r}: expected one of {', '.join(KV_DTYPES)}, or none for the model's own")
    return KV_DTYPES[name]


class KVCache:
    """Keys and values of all blocks: per layer `keys` and `values` [n_blocks K block_len H], contiguous.

    With int8 or float8_e4m3fn numbers also `key_scales` and `value_scales`, float32 [n_blocks K block_len]. A block has
    the same number in every layer of its kind. On a CPU memory is only taken where blocks are used. `layout` is given
    where these are some layers of a larger model.
    """

    def __init__(
        self,
        config: TextConfig,
        counts: Counts,
        *,
        dtype: torch.dtype,
        device: torch.device,
        layout: Layout | None = None,
    ) -> None:
        self.config = config
        self.layout = Layout.of(config) if layout is None else layout
        self.counts = counts
        self.dtype = dtype
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.key_scales: list[Tensor | None] = []
        self.value_scales: list[Tensor | None] = []
        for layer in range(config.n_layers):
            shape = (counts.of(kind_of(config, layer)), config.n_kv_heads, self.layout.block_len, config.head_dim)
            for codes, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
                codes.append(torch.empty(shape, dtype=dtype, device=device))
                scales.append(torch.empty(shape[:3], device=device) if _is_small(dtype) else None)

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks."""
        return pool_bytes(self.config, self.counts, self.dtype)

    def stored(self, layer: int) -> Stored:
        """Returns what a layer keeps."""
        return Stored(self.keys[layer], self.values[layer], self.key_scales[layer], self.value_scales[layer])

    def copy(self, kind: Kind, source: int, target: int) -> None:
        """Copies the content of a block in all layers of its kind."""
        for part in self._parts(kind):
            part[target] = part[source]

    def read(self, kind: Kind, block: int) -> bytes:
        """Returns the content of a block in all layers of its kind, `block_bytes` long."""
        return torch.cat([part[block].flatten() for part in self._parts(kind)]).cpu().numpy().tobytes()

    def write(self, kind: Kind, block: int, content: bytes) -> None:
        """Gives a block the content that `read` returned."""
        parts = self._parts(kind)
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(parts[0].device)
        for part, piece in zip(parts, torch.split(flat, [part[0].numel() for part in parts]), strict=True):
            part[block] = piece.view(part[block].shape)

    def _parts(self, kind: Kind) -> list[Tensor]:
        """Returns all tensors of a kind as bytes, [n_blocks ...]."""
        layers = (self.stored(i) for i in range(self.config.n_layers) if kind_of(self.config, i) == kind)
        return [part.view(torch.uint8) for stored in layers for part in stored if part is not None]


class PagedStore:
    """The `KVStore` of one forward over a flat batch, whose entries say where each sequence's blocks are.

    It is built once a step; layers of a kind share what it works out.
    """

    def __init__(self, cache: KVCache, entries: Sequence[Entry]) -> None:
        self._cache = cache
        device = cache.keys[0].device
        self._places = {
            kind: _places(cache, kind, entries, device)
            for kind in {kind_of(cache.config, layer) for layer in range(cache.config.n_layers)}
        }

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the attention [T N H] of the batch's queries [T N H]; remembers its keys and values, each [T K H]."""
        sizes(q, "T N H")
        stored, places = self._cache.stored(layer), self._places[kind_of(self._cache.config, layer)]
        write_paged(stored, places.blocks, places.offsets, k, v)
        attended = torch.empty_like(q)
        for piece in places.pieces:
            rows = slice(piece.first, piece.last)
            if piece.n_keys == piece.last - piece.first and stored.keys.dtype == q.dtype:  # all that it sees is here
                attended[rows] = attend_causal(q[rows], k[rows].transpose(0, 1), v[rows].transpose(0, 1))
            else:
                attended[rows] = attend_paged(q[rows], stored, piece.heads, piece.n_keys)
        return attended  # T N H


class _Piece(NamedTuple):
    """New tokens of one sequence, in chunked layers of one chunk: rows `first` to `last` of the flat batch.

    They are the last of `n_keys` positions, which lie in the rows `heads` [K n] of a layer's blocks (`head_rows`).
    """

    first: int
    last: int
    heads: Tensor
    n_keys: int


class _Places(NamedTuple):
    """Where the batch's new tokens go in layers of one kind, int64 [T] each, and what each piece of it sees."""

    blocks: Tensor
    offsets: Tensor
    pieces: list[_Piece]


def _places(cache: KVCache, kind: Kind, entries: Sequence[Entry], device: torch.device) -> _Places:
    block_len, n_kv_heads = cache.layout.block_len, cache.config.n_kv_heads
    chunk_len = cache.layout.chunk_len if kind == "chunked" and cache.layout.chunk_len is not None else math.inf
    blocks: list[int] = []
    offsets: list[int] = []
    pieces = []
    for entry in entries:
        table, base = (entry.global_blocks, 0) if kind == "global" else (entry.chunk_blocks, entry.chunk_base)
        position, end = entry.start, entry.start + entry.n_new
        while position < end:
            chunk_start = 0 if chunk_len == math.inf else int(position // chunk_len * chunk_len)
            stop = int(min(end, chunk_start + chunk_len))
            seen = table[(chunk_start - base) // block_len : -(-(stop - base) // block_len)]
            heads = head_rows(torch.tensor(seen, device=device), n_kv_heads)  # K n
            pieces.append(_Piece(len(blocks), len(blocks) + stop - position, heads, stop - chunk_start))
            blocks += [table[(p - base) // block_len] for p in range(position, stop)]
            offsets += [p % block_len for p in range(position, stop)]
            position = stop
    return _Places(torch.tensor(blocks, device=device), torch.tensor(offsets, device=device), pieces)


def _is_small(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1
