"""A model kept as it runs: its weights small and packed already, in one file, so that the next start only reads.

In: a model that `swap` has filled, to keep; the empty model of a configuration, to fill. Turning experts round, packing
and, above all, choosing int4 scales are then done once for a checkpoint, a choice of numbers and a processor.
A file: one JSON line that describes it, filled up to a page, then the tensors one after the other on borders of pages.
It is written beside its place and renamed: a file that is there is complete.
Routed experts are most of a model, and a token needs few of them: where there are kernels of ours, they are mapped into
memory and `Arrival` reads them behind the first answers. So the first token waits for what it needs, not for the rest.
Not here: what makes two models the same (`identity` is given), where the folder is.
"""

import contextlib
import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.kernels import native
from puna.kernels.formats import Fp8, Int4, Int8
from puna.kernels.native import Packed
from puna.kernels.quantized import Weight
from puna.model.count import part_of
from puna.model.transformer import Llama
from puna.quant.swap import SmallExperts, SmallLinear, put

VERSION = 2
PAGE_BYTES = 4096
PIECE_BYTES = 1 << 26  # of one read, so that progress is told often enough
_SMALL = {small.__name__: small for small in (Int4, Int8, Fp8)}

Progress = Callable[[int, int], None]  # bytes read so far, and in all


class _Item(NamedTuple):
    """One parameter in a file: its format, what the format says beside its tensors, and these."""

    name: str
    format: str
    about: dict[str, Any]
    tensors: list[tuple[str, list[int]]]  # dtype and shape


def keep(model: Llama, path: Path, identity: str) -> None:
    """Writes a model on the processor to a file. Raises WeightsError when that cannot be done: a disk is full, say."""
    held = list(weights(model))
    items = [_describe(name, weight) for name, weight in held]
    head = json.dumps({"version": VERSION, "identity": identity, "items": [item._asdict() for item in items]})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(head.encode() + b"\n")
            for _, weight in held:
                for tensor in _tensors(weight):
                    file.seek(_next_page(file.tell()))
                    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            file.truncate(_next_page(file.tell()))
        partial.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}); check space and permissions") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class Arrival:
    """Weights of a kept model that are being read. They can be used from the beginning; whoever needs one that is not
    there yet has the system read it."""

    def __init__(self, file: int, pieces: Sequence[native.FileMemory]) -> None:
        """Takes over the open `file` and reads the pieces of it in a thread of its own."""
        self._file = file
        self._pieces = [weakref.ref(piece) for piece in pieces]  # a model that is given up need not arrive
        self._thread = threading.Thread(target=self._read, name="puna weights", daemon=True)
        self._thread.start()

    def wait(self) -> Self:
        """Returns when all has arrived."""
        self._thread.join()
        return self

    def _read(self) -> None:
        try:
            for piece in self._pieces:
                while (memory := piece()) is not None and memory.settle():
                    del memory
        finally:
            os.close(self._file)


def fill(model: Llama, path: Path, identity: str, progress: Progress | None = None) -> Arrival | None:
    """Fills the empty `model` from a file that `keep` wrote for the same `identity`. Returns None where there is none.

    Raises WeightsError, naming the file, for one that is damaged: it is then to be removed.
    """
    if not path.is_file():
        return None
    try:
        with contextlib.ExitStack() as until_done:
            file = os.open(path, os.O_RDONLY)
            until_done.callback(os.close, file)
            head = _head(file, path)
            if (head["version"], head["identity"]) != (VERSION, identity):
                return None
            items = [_Item(**item) for item in head["items"]]
            offset, n_bytes = len(json.dumps(head)) + 1, path.stat().st_size
            coming: list[native.FileMemory] = []
            for item in items:
                tensors = []
                for dtype, shape in item.tensors:
                    first, offset = _next_page(offset), _next_page(offset) + math.prod(shape) * _dtype(dtype).itemsize
                    if offset > n_bytes:
                        raise WeightsError(f"{path}: ends too early; remove it")
                    if native.available() and part_of(item.name) == "routed_experts":
                        coming.append(native.FileMemory(file, first, offset - first))
                        memory = coming[-1].tensor()
                    else:
                        memory = _read(file, path, first, offset - first)
                    tensors.append(memory.view(_dtype(dtype)).view(shape))
                    if progress is not None:
                        progress(min(_next_page(offset), n_bytes), n_bytes)
                put(model, item.name, _weight(item, tensors))
            until_done.pop_all()
            return Arrival(file, coming)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); remove it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: is damaged ({error}); remove it") from error


def weights(model: Llama) -> Iterator[tuple[str, Weight | Packed]]:
    """Yields every parameter under the name that a checkpoint's parameter has, in whatever form it is held."""
    for path, module in model.named_modules():
        if isinstance(module, SmallLinear):
            yield f"{path}.weight", module.weight
        elif isinstance(module, SmallExperts):
            yield from ((f"{path}.{name}", getattr(module, name)) for name in ("gate_up", "down"))
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def _describe(name: str, weight: Weight | Packed) -> _Item:
    about: dict[str, Any] = {}
    if isinstance(weight, Packed):
        about = weight._asdict()
        del about["data"]
    format = "Tensor" if isinstance(weight, Tensor) else type(weight).__name__
    return _Item(name, format, about, [(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in _tensors(weight)])


def _tensors(weight: Weight | Packed) -> list[Tensor]:
    if isinstance(weight, Tensor):
        return [weight]
    return [weight.data] if isinstance(weight, Packed) else [weight.codes, weight.scales]


def _weight(item: _Item, tensors: list[Tensor]) -> Weight | Packed:
    if item.format == "Packed":
        return Packed(**item.about, data=tensors[0])
    return tensors[0] if item.format == "Tensor" else _SMALL[item.format](*tensors)


def _head(file: int, path: Path) -> dict[str, Any]:
    text = b""
    while b"\n" not in text:
        piece = os.pread(file, 1 << 20, len(text))
        if not piece:
            raise WeightsError(f"{path}: is damaged (it has no first line); remove it")
        text += piece
    head: dict[str, Any] = json.loads(text[: text.index(b"\n")])
    return head


def _read(file: int, path: Path, offset: int, n_bytes: int) -> Tensor:
    """Returns a part of a file, uint8 [n_bytes]."""
    memory = native.room(n_bytes) if native.available() else torch.empty(n_bytes, dtype=torch.uint8)
    view, done = memory.numpy().data, 0
    while done < n_bytes:
        n_read = os.preadv(file, [view[done : done + PIECE_BYTES]], offset + done)
        if not n_read:
            raise WeightsError(f"{path}: ends too early; remove it")
        done += n_read
    return memory


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _next_page(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES
