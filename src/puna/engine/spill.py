"""Where blocks go that had to leave the cache, until a text that begins with them comes back: memory or a file.

In: contents of blocks by kind and key, when `engine/blocks` evicts them. Out: the same bytes, on a hit. Both places are
bounded; what was neither kept nor found for longest goes first. A key says a block's whole past, so a content never
goes stale while the weights stay.
Not here: what a content is made of (`engine/cache`) and when it is worth restoring (`engine/blocks`).
"""

import fcntl
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from puna.engine.blocks import Kind
from puna.errors import DeviceError


class MemorySpill:
    """Keeps at most `max_bytes` bytes of contents in the machine's own memory: worth it beside a GPU."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._contents: OrderedDict[tuple[Kind, bytes], bytes] = OrderedDict()  # coldest first
        self.n_bytes = 0

    def put(self, kind: Kind, key: bytes, content: Callable[[], bytes]) -> None:
        """Keeps a content, which is only asked for if it is not here yet."""
        if (kind, key) not in self._contents:
            self._contents[kind, key] = content()
            self.n_bytes += len(self._contents[kind, key])
        self._contents.move_to_end((kind, key))
        while self.n_bytes > self._max_bytes:
            _, gone = self._contents.popitem(last=False)
            self.n_bytes -= len(gone)

    def has(self, kind: Kind, key: bytes) -> bool:
        """Says whether `get` has something to return."""
        return (kind, key) in self._contents

    def get(self, kind: Kind, key: bytes) -> bytes:
        """Returns a content that `has` knows."""
        self._contents.move_to_end((kind, key))
        return self._contents[kind, key]

    def clear(self) -> None:
        """Forgets everything."""
        self._contents.clear()
        self.n_bytes = 0


class FileSpill:
    """Keeps at most `max_bytes` bytes of contents in files of a folder, one for each kind of block.

    The files are made anew, hold nothing of use without this object, and go with it. Their places are used again, so
    that a file never grows beyond the most that its kind has taken. Raises DeviceError when the folder cannot be
    written, another object has its files there, or a file does not give back what it was given.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._places: OrderedDict[tuple[Kind, bytes], tuple[int, int]] = OrderedDict()  # first byte and length
        self._free: dict[Kind, list[int]] = {"global": [], "chunked": []}
        self._ends: dict[Kind, int] = {"global": 0, "chunked": 0}
        self.n_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {kind: _open(self._path(kind)) for kind in self._ends}
        except BlockingIOError as error:
            raise DeviceError(
                f"folder {folder} for spilled keys and values: somebody else's are there; choose another"
            ) from error
        except OSError as error:
            raise DeviceError(
                f"folder {folder} for spilled keys and values: {error.strerror}; choose another"
            ) from error
        self._remove = weakref.finalize(self, _remove, [(self._path(kind), file) for kind, file in self._files.items()])

    def put(self, kind: Kind, key: bytes, content: Callable[[], bytes]) -> None:
        """Keeps a content, which is only asked for if it is not here yet. All contents of a kind have one length."""
        if (kind, key) in self._places:
            self._places.move_to_end((kind, key))
            return
        data = content()
        if len(data) > self._max_bytes:
            return
        while self.n_bytes + len(data) > self._max_bytes:
            (gone, _), (first, length) = self._places.popitem(last=False)
            self._free[gone].append(first)
            self.n_bytes -= length
        first = self._free[kind].pop() if self._free[kind] else self._ends[kind]
        if os.pwrite(self._files[kind], data, first) != len(data):
            raise DeviceError(f"{self._path(kind)}: took only a part of a block; make room on its disk")
        self._ends[kind] = max(self._ends[kind], first + len(data))
        self._places[kind, key] = first, len(data)
        self.n_bytes += len(data)

    def has(self, kind: Kind, key: bytes) -> bool:
        """Says whether `get` has something to return."""
        return (kind, key) in self._places

    def get(self, kind: Kind, key: bytes) -> bytes:
        """Returns a content that `has` knows."""
        self._places.move_to_end((kind, key))
        first, length = self._places[kind, key]
        data = os.pread(self._files[kind], length, first)
        if len(data) != length:
            raise DeviceError(f"{self._path(kind)}: gave only a part of a block; nobody else may change it")
        return data

    def clear(self) -> None:
        """Forgets everything."""
        for (kind, _), (first, _) in self._places.items():
            self._free[kind].append(first)
        self._places.clear()
        self.n_bytes = 0

    def close(self) -> None:
        """Removes the files; the object is of no use any more."""
        self.clear()
        self._remove()

    def _path(self, kind: Kind) -> Path:
        return self._folder / f"{kind}.blocks"


def _open(path: Path) -> int:
    """Returns a new, empty file. Raises BlockingIOError while somebody else has it open like this."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        raise
    return file


def _remove(files: Iterable[tuple[Path, int]]) -> None:
    for path, file in files:
        path.unlink(missing_ok=True)
        os.close(file)
