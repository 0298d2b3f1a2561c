"""One expert as one run of bytes: its two matrices one after the other, so that a single sequential read brings it.

In: gate_up and down of one expert: plain, in a format of `kernels.formats`, or packed by `kernels.native`. Out: a
`Record`, which says where each of their tensors lies, the bytes, and from bytes the same matrices again, as views, each
a stack of one expert.
Not here: files (`store`), which bytes stay in memory (`cache`).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.kernels.formats import Fp8, Int4, Int8, Small, shape
from puna.kernels.native import KINDS, Packed

PAGE_BYTES = 4096
"""Records are multiples of it and begin on one: what reading past the page cache asks for, on every usual disk."""

_PART_BYTES = 64  # tensors within a record begin on a cache line
Weight = Tensor | Small | Packed

_FORMATS: Mapping[str, type[Small]] = {"int4": Int4, "int8": Int8, "fp8": Fp8}
_PACKED = {f"packed {kind}": kind for kind in KINDS}
_PLAIN = "plain"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.float8_e4m3fn,
    )
}


class Part(NamedTuple):
    """A tensor within a record."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Form(NamedTuple):
    """How a matrix is stored: the name of its format, outputs and inputs, and its tensors."""

    kind: str
    n_out: int
    n_in: int
    parts: tuple[Part, ...]


class Record(NamedTuple):
    """How every expert of a model lies in its bytes: gate_up [1 2F D], down [1 D F], and how many bytes there are."""

    gate_up: Form
    down: Form
    n_bytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the matrices are plain tensors."""
        return self.gate_up.kind == _PLAIN


class Pair(NamedTuple):
    """The matrices of one expert, gate_up and down, in one format."""

    gate_up: Weight
    down: Weight


def record_of(pair: Pair) -> Record:
    """Returns the record that takes experts such as this one, of matrices [out in] or stacks of one [1 out in]."""
    offset, forms = 0, []
    for weight in pair:
        parts = []
        for tensor in _tensors(weight):
            stacked = (1, *tensor.shape) if tensor.dim() == 2 else tuple(tensor.shape)
            parts.append(Part(offset, tensor.dtype, stacked))
            offset += _up(parts[-1].n_bytes, _PART_BYTES)
        forms.append(Form(_kind(weight), *_sizes(weight), tuple(parts)))
    return Record(forms[0], forms[1], _up(offset, PAGE_BYTES))


def store(record: Record, pair: Pair, room: Tensor) -> None:
    """Fills room, uint8 [n_bytes], with the bytes of an expert. Its format must be the record's."""
    assert record_of(pair) == record, "all experts of a model have one form"
    for form, weight in zip(_forms(record), pair, strict=True):
        for view, tensor in zip(_views(form, room), _tensors(weight), strict=True):
            view.copy_(tensor.view(view.shape))


def open_pair(record: Record, room: Tensor) -> Pair:
    """Returns the matrices that lie in room, uint8 [n_bytes], as views of it."""
    gate_up, down = (_weight(form, list(_views(form, room))) for form in _forms(record))
    return Pair(gate_up, down)


def to_json(record: Record) -> dict[str, Any]:
    """Returns what `from_json` reads."""
    return {
        "bytes": record.n_bytes,
        **{
            name: {
                "kind": form.kind,
                "sizes": [form.n_out, form.n_in],
                "parts": [[p.offset, str(p.dtype).removeprefix("torch."), list(p.shape)] for p in form.parts],
            }
            for name, form in zip(("gate_up", "down"), _forms(record), strict=True)
        },
    }


def from_json(value: Any) -> Record:
    """Returns the record that `to_json` wrote. Raises WeightsError when it is none, or does not fit its bytes."""
    try:
        forms = [
            Form(
                value[name]["kind"],
                value[name]["sizes"][0],
                value[name]["sizes"][1],
                tuple(Part(offset, _DTYPES[dtype], tuple(shape)) for offset, dtype, shape in value[name]["parts"]),
            )
            for name in ("gate_up", "down")
        ]
        record = Record(forms[0], forms[1], value["bytes"])
        open_pair(record, torch.empty(record.n_bytes, dtype=torch.uint8, device="meta"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the description of its experts makes no sense ({error!r})") from error
    return record


def _forms(record: Record) -> tuple[Form, Form]:
    return record.gate_up, record.down


def _kind(weight: Weight) -> str:
    if isinstance(weight, Tensor):
        return _PLAIN
    if isinstance(weight, Packed):
        return f"packed {weight.kind}"
    return next(name for name, kind in _FORMATS.items() if isinstance(weight, kind))


def _sizes(weight: Weight) -> tuple[int, int]:
    if isinstance(weight, Packed):
        return weight.n_out, weight.n_in
    *_, n_out, n_in = shape(weight)
    return n_out, n_in


def _tensors(weight: Weight) -> tuple[Tensor, ...]:
    if isinstance(weight, Packed):
        return (weight.data,)
    return (weight,) if isinstance(weight, Tensor) else tuple(weight)


def _weight(form: Form, tensors: list[Tensor]) -> Weight:
    if form.kind == _PLAIN:
        (plain,) = tensors
        return plain
    if form.kind in _PACKED:
        (data,) = tensors
        return Packed(_PACKED[form.kind], 1, form.n_out, form.n_in, data)
    return _FORMATS[form.kind](*tensors)


def _views(form: Form, room: Tensor) -> Iterator[Tensor]:
    for part in form.parts:
        yield room[part.offset : part.offset + part.n_bytes].view(part.dtype).view(part.shape)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
