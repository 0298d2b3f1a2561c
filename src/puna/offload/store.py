"""All routed experts of a model off the device: in files, one for each layer, or in the memory of the host.

In: experts one at a time, when a store is made. Out: the bytes of any expert, read into memory that is given.
A file is written beside its place and renamed: a layer that is there is complete, so that whoever is interrupted goes
on with the layer that was being written. Files are made for one model and one choice of numbers, named by `identity`.
A file: one page with a JSON object that describes it, then the records of experts 0, 1, 2 ... (`record`).
Not here: how a checkpoint is read (`weights`), what stays in memory (`cache`).
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.offload import record as records
from puna.offload.record import PAGE_BYTES, Pair, Record

VERSION = 1
PIECE_BYTES = 1 << 23
"""Bytes of one read call: enough to keep a disk's queues full, little enough that a wrong guess is given up soon."""

_DIRECT = getattr(os, "O_DIRECT", 0)  # reading past the page cache, where the system knows that


class Key(NamedTuple):
    """Which expert of a model."""

    layer: int
    expert: int


class Layers(NamedTuple):
    """Which experts a store holds: n_experts in each of these layers, ascending."""

    layers: tuple[int, ...]
    n_experts: int

    def all_keys(self) -> list[Key]:
        """Returns all experts, layer after layer."""
        return [Key(layer, expert) for layer in self.layers for expert in range(self.n_experts)]


ReadExpert = Callable[[Key], Pair]
Progress = Callable[[int, int], None]  # experts written so far, experts in all


class Store(Protocol):
    """Where experts are when they are not on the device. Reading is for one thread at a time."""

    @property
    def experts(self) -> Layers: ...

    @property
    def record(self) -> Record: ...

    @property
    def where(self) -> str:
        """What a sentence calls this place: "on disk"."""
        ...

    def read(self, key: Key, room: Tensor, give_up: Callable[[], bool]) -> bool:
        """Fills room, uint8 [record.n_bytes], and returns True; or False as soon as `give_up` says so.

        Raises WeightsError, naming file and expert, when the bytes are not there.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds; nothing can be read afterwards."""
        ...


class DiskStore:
    """Experts in the files of a folder, read past the page cache where disk and system allow: what is worth keeping is
    kept by `cache`, and a second copy in the page cache would take the memory that it needs."""

    where = "on disk"

    def __init__(self, folder: Path, identity: str, experts: Layers) -> None:
        """Opens a complete store. Raises WeightsError, naming the file, when one is missing, cut off or another's."""
        self.experts = experts
        self._paths = {layer: _path(folder, layer) for layer in experts.layers}
        found = {_check(path, identity, layer, experts) for layer, path in self._paths.items()}
        if len(found) != 1:
            raise WeightsError(f"{folder}: its layers have experts of {len(found)} forms; remove it to make it anew")
        (self.record,) = found
        self._files = {layer: _open(path) for layer, path in self._paths.items()}

    def read(self, key: Key, room: Tensor, give_up: Callable[[], bool]) -> bool:
        window, start = view_bytes(room), PAGE_BYTES + key.expert * self.record.n_bytes
        done = 0
        while done < len(window):
            if give_up():
                return False
            piece = window[done : done + PIECE_BYTES]
            try:
                n_read = os.preadv(self._files[key.layer], [piece], start + done)
            except OSError as error:
                raise WeightsError(f"{self._name(key)}: cannot be read ({error.strerror}); check the disk") from error
            n_read -= n_read % PAGE_BYTES  # direct reading goes on at a page, and a whole file ends with one
            if not n_read:
                raise WeightsError(
                    f"{self._name(key)}: the file ends before this expert does; remove it to make it anew"
                )
            done += n_read
        return True

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _name(self, key: Key) -> str:
        return f"expert {key.expert} of layer {key.layer} in {self._paths[key.layer]}"


class HostStore:
    """Experts in the memory of the host, locked there when they go to a GPU, which then fetches them by itself."""

    where = "in host memory"

    def __init__(self, experts: Layers, read: ReadExpert, *, locked: bool, progress: Progress | None = None) -> None:
        """Reads all experts. Raises WeightsError when there is no memory to lock."""
        self.experts, keys = experts, experts.all_keys()
        first = read(keys[0])
        self.record = records.record_of(first)
        self._rooms: dict[Key, Tensor] = {}
        self._locked: list[Tensor] = []
        for number, key in enumerate(keys):
            if key.expert == 0:
                layer = pages(experts.n_experts * self.record.n_bytes)
                if locked:
                    _lock(layer)
                    self._locked.append(layer)
                self._rooms |= {
                    Key(key.layer, expert): room for expert, room in enumerate(torch.split(layer, self.record.n_bytes))
                }
            records.store(self.record, first if number == 0 else read(key), self._rooms[key])
            if progress is not None:
                progress(number + 1, len(keys))

    def read(self, key: Key, room: Tensor, give_up: Callable[[], bool]) -> bool:
        if give_up():
            return False
        room.copy_(self._rooms[key], non_blocking=True)
        return True

    def close(self) -> None:
        for layer in self._locked:
            torch.cuda.cudart().cudaHostUnregister(layer.data_ptr())  # type: ignore[no-untyped-call]
        self._locked.clear()
        self._rooms.clear()


def write_missing(
    folder: Path, identity: str, experts: Layers, read: ReadExpert, progress: Progress | None = None
) -> None:
    """Writes the files that a store in `folder` lacks, one expert in memory at a time. Those that are there stay.

    Whoever comes while another process writes waits for it. Raises WeightsError when the disk has no room for the
    files, before anything is written, or cannot be written.
    """
    if not _missing(folder, experts):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            missing = _missing(folder, experts)
            for number, layer in enumerate(missing):
                first = read(Key(layer, 0))
                record = records.record_of(first)
                if number == 0:
                    _check_room(folder, len(missing) * _file_bytes(record, experts))
                _write_layer(folder, identity, layer, experts, record, first, read)
                if progress is not None:
                    n_left = len(missing) - number - 1
                    progress((len(experts.layers) - n_left) * experts.n_experts, len(experts.all_keys()))
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise WeightsError(f"{folder}: cannot be written ({reason}); give another folder, or make room") from error


def pages(n_bytes: int) -> Tensor:
    """Returns new memory, uint8 [n_bytes], that begins on a page and takes room only as it is written."""
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=torch.uint8)


def view_bytes(room: Tensor) -> memoryview:
    """Returns the bytes of a tensor uint8 [n] of the host's memory, to be read into or written from."""
    return memoryview(room.numpy())  # type: ignore[arg-type]  # numpy's arrays are buffers


def _missing(folder: Path, experts: Layers) -> list[int]:
    return [layer for layer in experts.layers if not _path(folder, layer).exists()]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which the system takes back from a process that ends in whatever way."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03d}.experts"


def _file_bytes(record: Record, experts: Layers) -> int:
    return PAGE_BYTES + experts.n_experts * record.n_bytes


def _head(identity: str, layer: int, experts: Layers, record: Record) -> bytes:
    described = {
        "version": VERSION,
        "identity": identity,
        "layer": layer,
        "experts": experts.n_experts,
        "record": records.to_json(record),
    }
    text = json.dumps(described).encode()
    assert len(text) < PAGE_BYTES, "a description takes one page"
    return text.ljust(PAGE_BYTES, b"\n")


def _write_layer(
    folder: Path, identity: str, layer: int, experts: Layers, record: Record, first: Pair, read: ReadExpert
) -> None:
    path = _path(folder, layer)
    partial = path.with_suffix(".partial")  # of a process that was killed: written over
    room = torch.zeros(record.n_bytes, dtype=torch.uint8)  # what lies between tensors is zero
    try:
        with partial.open("wb") as file:
            file.write(_head(identity, layer, experts, record))
            for expert in range(experts.n_experts):
                records.store(record, read(Key(layer, expert)) if expert else first, room)
                file.write(view_bytes(room))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_room(folder: Path, n_bytes: int) -> None:
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free < n_bytes:
        raise WeightsError(
            f"{folder}: the experts take {n_bytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; "
            "give a folder on another disk, or make room"
        )


def _check(path: Path, identity: str, layer: int, experts: Layers) -> Record:
    """Returns the record of a file whose description and length are right."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head: Any = json.loads(file.read(PAGE_BYTES))
        said = [head[name] for name in ("version", "identity", "layer", "experts")]
        record = records.from_json(head["record"])
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); remove it to make it anew") from error
    except (ValueError, KeyError, TypeError, WeightsError) as error:
        raise WeightsError(f"{path}: is no file of experts ({error}); remove it to make it anew") from error
    if said != [VERSION, identity, layer, experts.n_experts]:
        raise WeightsError(f"{path}: holds the experts of another model or layer; remove it to make it anew")
    wanted = _file_bytes(record, experts)
    if size != wanted:
        expert = max(0, size - PAGE_BYTES) // record.n_bytes
        raise WeightsError(
            f"{path}: has {size} bytes instead of {wanted}, which cuts off expert {expert}; remove it to make it anew"
        )
    return record


def _open(path: Path) -> int:
    """Opens a file for reading past the page cache, or through it on file systems that know no other way."""
    try:
        return os.open(path, os.O_RDONLY | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise WeightsError(f"{path}: cannot be opened ({error.strerror}); check path and rights") from error
        return os.open(path, os.O_RDONLY)


def _lock(memory: Tensor) -> None:
    """Locks memory in place for the GPU. Torch's own locked memory comes in powers of two: up to twice as much."""
    failed = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))  # type: ignore[no-untyped-call]
    if failed:
        raise WeightsError(
            f"the experts take {memory.numel() / 1e9:.1f} GB a layer and the host cannot lock them in memory "
            f"(CUDA error {failed}); raise the limit of locked memory, or put them on disk"
        )
