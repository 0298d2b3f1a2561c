"""Records that do not fit into memory: files of fixed-size records, split by a number so that each part does.

Records with the same key are in the same part, so a part alone decides about them. Files are plain arrays, in the order
in which records came.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]  # structured [records]

_READ_BYTES = 2**20
_OPEN_PARTS = 512  # files written at a time; also bounds the parts


def blocks(path: Path, kind: np.dtype[Any], block_bytes: int = _READ_BYTES) -> Iterator[Records]:
    """Yields the records of a file, a few at a time."""
    count = max(block_bytes // kind.itemsize, 1)
    with path.open("rb") as file:
        while data := file.read(count * kind.itemsize):
            yield np.frombuffer(data, kind)


def n_parts(n_records: int, kind: np.dtype[Any], memory_bytes: int, copies: int) -> int:
    """Returns how many parts there must be so that one, `copies` times over, fits into a memory."""
    return min(max(-(-n_records * kind.itemsize * copies * 5 // (4 * memory_bytes)), 1), _OPEN_PARTS)


def split(records: Iterator[Records], key: str, folder: Path, parts: int) -> list[Path]:
    """Writes records to `parts` files by their field `key`, a uniform hash, and returns the files in order of keys."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}" for number in range(parts)]
    files = [path.open("wb", buffering=4096) for path in paths]
    try:
        for block in records:
            numbers = ((block[key] >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)
            order = np.argsort(numbers, kind="stable")
            ends = np.cumsum(np.bincount(numbers.astype(np.int64), minlength=parts))
            for file, piece in zip(files, np.split(block[order], ends[:-1]), strict=True):
                file.write(piece.tobytes())
    finally:
        for file in files:
            file.close()
    return paths


def load(path: Path, kind: np.dtype[Any]) -> Records:
    """Returns all records of a part."""
    return np.fromfile(path, kind)
