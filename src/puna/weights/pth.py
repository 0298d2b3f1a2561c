"""Meta's `.pth` files: which tensors one holds and where, and writing one in pieces.

A file is an uncompressed zip archive: a pickle that describes the tensors, and one member of raw bytes per storage.
Only the description is unpickled, by torch's own restricted unpickler (`weights_only`), onto the meta device: code in
a file is refused (docs/decisions/005), and no number is read here.
Not here: the numbers themselves (`stored`), what keys mean (`names`).
Source: pytorch `torch/serialization.py` and docs/source/notes/serialization.rst.
"""

import io
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from puna.errors import DeviceError, WeightsError
from puna.weights.safetensors import Entry
from puna.weights.stored import Stored

_ALIGNMENT = 64  # of each storage in the file, as torch.save has it, so that others can map it
_ROOT = "consolidated"  # the folder inside the archive; torch.load accepts any
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # a zip file must carry one; a fixed one makes equal weights equal files
_STORAGES: dict[torch.dtype, Any] = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
}


def index(path: Path) -> list[Stored]:
    """Returns the tensors of a file in the order of their bytes, without what is no tensor (Meta's `_extra_state`).

    Raises WeightsError, naming the file and where possible the key, when the file is damaged, holds anything but plain
    data, or is not a flat mapping of names to tensors.
    """
    _check_archive(path)
    try:
        # Meta's files carry BytesIO objects, states of fused modules: creating one does nothing else.
        with torch.serialization.safe_globals([io.BytesIO]):
            state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's message goes on to advise loading without the restriction
        why = re.search(
            r"WeightsUnpickler error: (.*?)( was not an allowed global| Please|$)", str(error), re.MULTILINE
        )
        raise WeightsError(
            f"{path}: holds more than tensors, which is refused because it could run code"
            + (f" ({why[1][:200]})" if why else "")
        ) from error
    except Exception as error:  # from a damaged description the unpickler raises almost anything
        raise WeightsError(f"{path}: not a readable torch file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a mapping of names to tensors")
    size = path.stat().st_size
    found = [_stored(path, key, value, size) for key, value in state.items() if isinstance(value, Tensor)]
    return sorted(found, key=lambda stored: stored.offset)


class Writer:
    """Writes one file: all entries are announced first, then their bytes come in the same order."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self._file = open(path, "wb")  # noqa: SIM115  closed by `close`
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._n_put = 0
        description = io.BytesIO()
        _Describer(description, protocol=2).dump({e.key: _Tensor(e, str(i)) for i, e in enumerate(entries)})
        self._add("data.pkl", [description.getbuffer()])
        self._add("byteorder", [memoryview(sys.byteorder.encode())])

    def put(self, entry: Entry, data: Iterable[memoryview]) -> None:
        """Writes the bytes of the next announced entry."""
        n_written = self._add(f"data/{self._n_put}", data)
        assert n_written == entry.n_bytes, f"{entry.key}: {n_written} bytes written, {entry.n_bytes} announced"
        self._n_put += 1

    def close(self) -> None:
        self._add("version", [memoryview(b"3\n")])
        self._archive.close()
        self._file.close()

    def _add(self, name: str, data: Iterable[memoryview]) -> int:
        member = zipfile.ZipInfo(f"{_ROOT}/{name}", _OLDEST_DATE)
        # The header before the data is 30 bytes, the name, our padding (4 + n bytes) and 20 bytes for 64-bit sizes.
        start = self._file.tell() + 30 + len(member.filename) + 20 + 4
        n_padding = -start % _ALIGNMENT
        member.extra = b"FB" + n_padding.to_bytes(2, "little") + b"\0" * n_padding
        with self._archive.open(member, "w", force_zip64=True) as file:
            return sum(file.write(piece) for piece in data)


class _Storage(NamedTuple):
    kind: Any
    key: str
    n_elements: int


class _Tensor:
    """Stands in the pickled mapping for a tensor whose bytes follow later."""

    def __init__(self, entry: Entry, key: str) -> None:
        n_elements = entry.n_bytes // entry.dtype.itemsize
        strides = torch.empty(entry.shape, device="meta").stride()
        storage = _Storage(_STORAGES[entry.dtype], key, n_elements)
        no_hooks: OrderedDict[str, Any] = OrderedDict()
        self.arguments = (storage, 0, tuple(entry.shape), strides, False, no_hooks)


class _Describer(pickle.Pickler):
    """Writes what torch.save would write for the same tensors on the processor."""

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.kind, obj.key, "cpu", obj.n_elements) if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _Tensor):
            return torch._utils._rebuild_tensor_v2, obj.arguments
        return NotImplemented


def _check_archive(path: Path) -> None:
    """A member that is compressed, or of the other byte order, would be read as noise."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise WeightsError(f"{path}: {member.filename!r} is compressed; save it with torch.save")
                if member.filename.endswith("/byteorder") and archive.read(member).decode() != sys.byteorder:
                    raise WeightsError(
                        f"{path}: written in another byte order; save it on a {sys.byteorder}-endian machine"
                    )
    except (zipfile.BadZipFile, RuntimeError, ValueError) as error:  # RuntimeError: encrypted, or of no known method
        raise WeightsError(f"{path}: truncated, or not a torch file ({error}); fetch it again") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error


def _stored(path: Path, key: str, tensor: Tensor, size: int) -> Stored:
    if type(tensor) not in (Tensor, Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise WeightsError(f"{key!r} in {path}: is no plain tensor ({tensor.layout}); save plain ones")
    storage = tensor.untyped_storage()
    begin = getattr(storage, "_checkpoint_offset", None)
    if begin is None:
        raise DeviceError(
            f"torch: {torch.__version__} does not tell where a file keeps its tensors; install a newer one"
        )
    stored = Stored(
        path, key, tensor.dtype, tuple(tensor.shape), begin + tensor.storage_offset() * tensor.dtype.itemsize
    )
    if not tensor.is_contiguous():
        raise WeightsError(f"{stored}: is a view with strides {tensor.stride()}; save it after .contiguous()")
    if stored.offset + stored.n_bytes > min(size, begin + storage.nbytes()):
        raise WeightsError(f"{stored}: ends behind its storage; the file is damaged, fetch it again")
    return stored
