"""Tensors at rest in a file, and their way into and out of memory in small pieces.

In and out: parts of parameters on one side, runs of bytes of a file on the other. All reading is plain reading into one
buffer that is used again and again: pages of a memory map would count as memory of this process, and the whole file
with them (docs/decisions/006). The largest piece is one matrix where it must be turned (a routed expert), and
`PIECE_BYTES` everywhere else.
Not here: which key belongs to which parameter (`names`), how a file describes its tensors (`safetensors`, `pth`).
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.weights.names import Layout, Part

PIECE_BYTES = 1 << 24  # large enough that reading is sequential, small beside any model
_TURN_ROWS = 32  # rows turned at once: the fastest of 8..512 for bfloat16 matrices of 2560 x 8192 on x86


_OWN_PAGES_BYTES = 1 << 20  # from here on a tensor gets pages of its own


class Stored(NamedTuple):
    """One tensor of a file: contiguous, row-major, little-endian, from byte `offset` on."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.key!r} in {self.path}"


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Returns memory for a parameter. A large one on the processor has pages of its own, which the system gets back
    with its end: places in the heap between others that stay would be kept, and grow a process that loads one large
    parameter after the other by several of them."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < _OWN_PAGES_BYTES or torch.device(device).type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(*shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(*shape)


class Staging:
    """One buffer for all pieces; it grows to the largest. What it hands out is valid until the next request."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def room(self, dtype: torch.dtype, shape: Sequence[int]) -> tuple[Tensor, memoryview]:
        """Returns the same memory as a tensor of this dtype and shape and as bytes. No size may be 0."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes > len(self._buffer):
            self._buffer = bytearray()  # freed first, so that never both are there
            self._buffer = bytearray(n_bytes)
        tensor = torch.frombuffer(self._buffer, dtype=torch.uint8, count=n_bytes).view(dtype).view(*shape)
        return tensor, memoryview(self._buffer)[:n_bytes]


def read(stored: Stored, start: int, shape: Sequence[int], staging: Staging) -> Tensor:
    """Returns the elements from number `start` on, as many as `shape` has, in memory of `staging`.

    Raises WeightsError when the file ends before them or cannot be read.
    """
    tensor, window = staging.room(stored.dtype, shape)
    try:
        with open(stored.path, "rb", buffering=0) as file:
            file.seek(stored.offset + start * stored.dtype.itemsize)
            while window:
                n_read = file.readinto(window)
                if not n_read:
                    raise WeightsError(f"{stored}: the file ends before this tensor does; fetch it again")
                window = window[n_read:]
    except OSError as error:
        raise WeightsError(f"{stored}: cannot be read ({error.strerror}); check the file and its disk") from error
    return tensor


def read_whole(stored: Stored) -> Tensor:
    """Returns a small tensor, such as a scale, in memory of its own."""
    return read(stored, 0, stored.shape or (1,), Staging()).view(stored.shape)


def region(tensor: Tensor, part: Part, shard: int, n_shards: int) -> Tensor:
    """Returns the view of our parameter that `part` names, as far as model-parallel shard `shard` of `n_shards` has it.

    The cut axis must be divisible by `n_shards`.
    """
    if part.expert is not None:
        tensor = tensor[part.expert]
    if part.half is not None:
        tensor = tensor.chunk(2, dim=-2)[part.half]
    if part.axis is not None:
        size = tensor.shape[part.axis] // n_shards
        tensor = tensor.narrow(part.axis, shard * size, size)
    return tensor


def shape_at_rest(regions: Sequence[Tensor], layout: Layout) -> tuple[int, ...]:
    """Returns the shape that a file's tensor has when it holds `regions`, one per part of `layout`."""
    shape = list(regions[0].shape)
    if layout.in_first:
        shape[-2:] = shape[:-3:-1]
    if layout.merged:
        shape[:2] = [shape[0] * shape[1]]
    return (sum(part.shape[0] for part in regions), *shape[1:]) if len(regions) > 1 else tuple(shape)


def fill(target: Tensor, stored: Stored, start: int, scale: Tensor | None, staging: Staging, *, in_first: bool) -> None:
    """Fills `target`, a view of our parameter, from the elements of a file that begin with number `start`.

    target [.. out in] or [in]; `in_first`: each matrix lies in the file as [in out]. scale float32, broadcastable to
    target, multiplies what was read, in float32; the product is rounded once, to the dtype of target.
    """
    matrices = _matrices(target)
    factors = [None] * len(matrices) if scale is None else _matrices(scale.expand(*target.shape[:-1], 1))  # out 1
    for number, (matrix, factor) in enumerate(zip(matrices, factors, strict=True)):
        first = start + number * matrix.numel()
        n_rows, n_columns = matrix.shape
        if in_first:
            block = read(stored, first, (n_columns, n_rows), staging)
            _turn(matrix, block, None if factor is None else factor.T)
            continue
        step = max(1, PIECE_BYTES // (n_columns * stored.dtype.itemsize))
        for row in range(0, n_rows, step):
            rows = matrix[row : row + step]
            block = read(stored, first + row * n_columns, rows.shape, staging)
            rows.copy_(_scaled(block, None if factor is None else factor[row : row + step], rows.dtype))


def pieces(source: Tensor, staging: Staging, *, in_first: bool) -> Iterator[memoryview]:
    """Yields the bytes of a view of our parameter in the order in which `fill` reads them; each until the next."""
    for matrix in _matrices(source):
        n_rows, n_columns = matrix.shape
        if in_first:
            block, window = staging.room(matrix.dtype, (n_columns, n_rows))
            _turn(block, matrix, None)
            yield window
            continue
        step = max(1, PIECE_BYTES // (n_columns * matrix.dtype.itemsize))
        for row in range(0, n_rows, step):
            rows = matrix[row : row + step]
            block, window = staging.room(rows.dtype, rows.shape)
            block.copy_(rows)
            yield window


def _matrices(x: Tensor) -> Sequence[Tensor]:
    """A vector is one row; a stack of experts is one matrix each."""
    return list(x) if x.dim() == 3 else [x if x.dim() == 2 else x.unsqueeze(0)]


def _turn(target: Tensor, source: Tensor, scale: Tensor | None) -> None:
    """target [b a] = transpose of source [a b], times scale [1 b], in strips that stay in the processor's cache."""
    if target.device.type != source.device.type:  # turn on the accelerator, whose memory takes it in one go
        source = source.to(target.device) if source.device.type == "cpu" else source.T.contiguous().cpu().T
    strip = _TURN_ROWS if target.device.type == "cpu" else source.shape[0]
    for row in range(0, source.shape[0], strip):
        block = _scaled(source[row : row + strip], scale, target.dtype)
        target[:, row : row + strip].copy_(block.T)


def _scaled(block: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return block if scale is None else (block.float() * scale.to(block.device)).to(dtype)
