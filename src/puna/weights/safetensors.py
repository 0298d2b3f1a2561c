"""The safetensors format: which tensors a file holds and where, and writing one in pieces.

A file is an 8-byte length, a JSON header of that length, and the tensors' bytes. Nothing in it can be executed.
Not here: the numbers themselves (`stored`), what the keys mean (`names`).
Source: github.com/huggingface/safetensors, README.md, section "Format".
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from puna.errors import WeightsError
from puna.weights.stored import Stored

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """A tensor that is going to be written."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def index(path: Path) -> list[Stored]:
    """Returns the tensors of a file in the order of their bytes, from its header alone.

    Raises WeightsError, naming the file and where possible the key, when the header is not one, when it contradicts
    itself, or when the file is shorter or longer than the header says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or not 0 < length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
                raise WeightsError(
                    f"{path}: header of {length} bytes in a file of {size}: truncated, or not a safetensors file"
                )
            header = _parse(file.read(length), path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error
    data = _LENGTH_BYTES + length
    found = sorted(
        (_stored(path, key, value, data) for key, value in header.items()), key=lambda s: (s.offset, s.n_bytes)
    )
    _check_gapless(path, found, data, size)
    return found


class Writer:
    """Writes one file: all entries are announced first, then their bytes come in the same order."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
        end = 0
        for entry in entries:
            start, end = end, end + entry.n_bytes
            header[entry.key] = {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH_BYTES)  # so that the data begin aligned
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  closed by `close`
        self._file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)

    def put(self, entry: Entry, data: Iterable[memoryview]) -> None:
        """Writes the bytes of the next announced entry."""
        n_written = sum(self._file.write(piece) for piece in data)
        assert n_written == entry.n_bytes, f"{entry.key}: {n_written} bytes written, {entry.n_bytes} announced"

    def close(self) -> None:
        self._file.close()


def _parse(text: bytes, path: Path) -> Mapping[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise WeightsError(f"{twice!r} in {path}: the header names it twice; the file is damaged")
        return values

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the header is not JSON; damaged, or not a safetensors file") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: the header is not an object; damaged, or not a safetensors file")
    header.pop("__metadata__", None)
    return header


def _stored(path: Path, key: str, value: Any, data: int) -> Stored:
    """One entry of the header, checked: its bytes are as many as dtype and shape need."""
    match value:
        case {"dtype": str(name), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise WeightsError(
                f"{key!r} in {path}: no dtype, shape and data_offsets in the header; the file is damaged"
            )
    if name not in _DTYPES:
        raise WeightsError(f"{key!r} in {path}: dtype {name!r} is not supported; use one of {', '.join(_DTYPES)}")
    if not all(isinstance(size, int) and size >= 0 for size in shape) or start < 0:
        raise WeightsError(f"{key!r} in {path}: shape {shape} at byte {start} is impossible; the file is damaged")
    stored = Stored(path, key, _DTYPES[name], tuple(shape), data + start)
    if stored.n_bytes != end - start:
        raise WeightsError(
            f"{key!r} in {path}: {end - start} bytes for {name} of shape {shape}, which has {stored.n_bytes}; "
            "the file is damaged"
        )
    return stored


def _check_gapless(path: Path, found: Sequence[Stored], data: int, size: int) -> None:
    """The format allows neither holes nor overlaps; both would hide bytes or give them twice."""
    ends = [data, *(stored.offset + stored.n_bytes for stored in found)]
    for stored, end in zip(found, ends[1:], strict=True):
        if end > size:
            raise WeightsError(f"{stored}: ends at byte {end} of a file of {size}: truncated, fetch it again")
    starts = [*(stored.offset for stored in found), size]
    for end, start, what in zip(ends, starts, [*map(str, found), f"end of {path}"], strict=True):
        if end != start:
            raise WeightsError(f"{what}: is at byte {start}, but what is before it ends at {end}; the file is damaged")
