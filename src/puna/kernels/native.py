"""Matrix products and a whole decoder step on the processor, in C++ (`native/`), called through ctypes.

In: weights as tensors or in a format of `formats`, packed once; activations. Out: activations, logits.
A row's result never depends on the rows beside it, bit for bit: a request gets the same tokens alone and in company.
Not here: when this is used (`available` says whether it can be) and what a model's layers are (`engine/native`).
Everything has a plain twin: `quantized.linear_plain`, `quantized.routed_experts_plain`, `engine.runner.TorchRunner`.
"""

import ctypes
import errno
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.kernels.build import Signatures, bound
from puna.kernels.experts import group_by_expert
from puna.kernels.formats import GROUP, Int4, Int8
from puna.shapes import sizes

Kind = Literal["fp32", "bf16", "int8", "int4", "int6"]

KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8", "int4", "int6")
_PLAIN: dict[torch.dtype, Kind] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

_BYTES_WORTH_A_TEAM = 1 << 18  # of weights in a layer: what one core reads while threads meet a dozen times


class Packed(NamedTuple):
    """A matrix [n_out n_in], or `n_experts` of them, in the order in which the kernels read it: data uint8 [bytes]."""

    kind: Kind
    n_experts: int | None
    n_out: int
    n_in: int
    data: Tensor


class PackedFactors(NamedTuple):
    """The factors of several adapters for one map, scales multiplied in: stacks a [M rank in] and b [M out rank];
    `table` int32 [n] or [n E] says which of the M are those of an adapter, or of one of its experts; -1: none."""

    a: Packed
    b: Packed
    table: Tensor


class Matrix(Structure):
    """`Matrix` of matmul.h."""

    _fields_ = (
        ("data", c_void_p),
        ("expert_bytes", c_int64),
        ("kind", c_int32),
        ("n_out", c_int32),
        ("n_in", c_int32),
        ("n_experts", c_int32),
    )


class Delta(Structure):
    """`Delta` of adapted.h."""

    _fields_ = (("a", Matrix), ("b", Matrix), ("table", c_void_p), ("n_experts", c_int64))


class Deltas(Structure):
    """`Deltas` of adapted.h: those of one layer."""

    _fields_ = tuple(
        (name, Delta)
        for name in (
            *("query", "key", "value", "output", "router"),
            *("gate_up", "down", "shared_gate", "shared_up", "shared_down"),
        )
    )


class Store(Structure):
    """`Store` of attention.h: keys and values of one layer."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("numbers", c_int32),
        ("n_kv_heads", c_int32),
        ("block_len", c_int32),
        ("head_dim", c_int32),
    )


class Layer(Structure):
    """`Layer` of decoder.h."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("feed_forward_norm", c_void_p),
        ("query", Matrix),
        ("key", Matrix),
        ("value", Matrix),
        ("output", Matrix),
        ("router", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("shared_gate", Matrix),
        ("shared_up", Matrix),
        ("shared_down", Matrix),
        ("deltas", POINTER(Deltas)),
        ("store", Store),
        ("uses_rope", c_int32),
        ("uses_qk_norm", c_int32),
        ("uses_temperature", c_int32),
        ("is_chunked", c_int32),
    )


class Model(Structure):
    """`Model` of decoder.h."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("frequencies", c_void_p),
        ("norm", c_void_p),
        ("embedding", c_void_p),
        ("head", Matrix),
        ("head_delta", POINTER(Delta)),
        ("floor_len", c_int64),
        ("temperature_scale", c_double),
        ("norm_eps", c_float),
        ("embedding_is_bf16", c_int32),
        ("n_layers", c_int32),
        ("width", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("n_experts", c_int32),
        ("n_active_experts", c_int32),
        ("chunk_len", c_int64),
    )


class Entry(Structure):
    """`Entry` of decoder.h."""

    _fields_ = (
        ("global_blocks", c_void_p),
        ("chunk_blocks", c_void_p),
        ("n_new", c_int64),
        ("start", c_int64),
        ("chunk_base", c_int64),
    )


class Batch(Structure):
    """`Batch` of decoder.h."""

    _fields_ = (
        ("ids", c_void_p),
        ("features", c_void_p),
        ("feature_row", c_void_p),
        ("entries", POINTER(Entry)),
        ("wanted", c_void_p),
        ("adapters", c_void_p),
        ("logits", c_void_p),
        ("routes", c_void_p),
        ("n_tokens", c_int64),
        ("n_entries", c_int64),
        ("n_wanted", c_int64),
    )


def available() -> bool:
    """Returns whether the kernels were built for this processor and can be used."""
    return _library() is not None


def pack(weight: Tensor | Int4 | Int8) -> Packed:
    """Returns a weight [out in] or [E out in] in the order of the kernels, its numbers as they are.

    Any sizes: the last block of outputs and the last group of inputs are filled with zeros. Tensors are float32 or
    bfloat16. Int8 whose codes all fit in six bits takes six. Needs `available()`.
    """
    if isinstance(weight, Tensor):
        kind, codes, scales = _PLAIN[weight.dtype], weight, None
    else:
        kind, codes, scales = ("int4" if isinstance(weight, Int4) else _narrowest(weight)), weight.codes, weight.scales
    n_experts = codes.shape[0] if codes.dim() == 3 else None
    *_, n_out, n_in = codes.shape
    n_in = 2 * n_in if kind == "int4" else n_in
    each = _loaded().puna_matrix_bytes(KINDS.index(kind), n_out, n_in)
    data = room(each * (n_experts or 1))
    for expert in range(n_experts or 1):
        source = codes if n_experts is None else codes[expert]
        factors = None if scales is None else scales if n_experts is None else scales[expert]
        _pack_one(kind, source, factors, n_out, n_in, data[expert * each : (expert + 1) * each])
    return Packed(kind, n_experts, n_out, n_in, data)


def quantize_int4(numbers: Tensor, reaches: Sequence[float]) -> Int4:
    """Returns finite float32 numbers [rows in] as Int4 in the way of `quant.int4`, which tries these `reaches`.

    `in` must be a multiple of 32.
    """
    rows, width = sizes(numbers, "rows in")
    source = numbers.contiguous()
    codes = torch.empty(rows, width // 2, dtype=torch.uint8)
    scales = torch.empty(rows, width // GROUP, dtype=torch.bfloat16)
    _loaded().puna_quantize_int4(
        source.data_ptr(),
        scales.numel(),
        (c_float * len(reaches))(*reaches),
        len(reaches),
        codes.data_ptr(),
        scales.data_ptr(),
        _n_threads(),
    )
    return Int4(codes, scales)


def linear(x: Tensor, weight: Packed) -> Tensor:
    """Returns x @ weight.T, [.. in] -> [.. out], in the dtype of x."""
    rows = x.detach().reshape(-1, weight.n_in)
    out = _grouped_linear(rows, weight, torch.tensor([0, len(rows)]))
    return out.view(*x.shape[:-1], weight.n_out)


def routed_experts(x: Tensor, scores: Tensor, experts: Tensor, gate_up: Packed, down: Packed) -> Tensor:
    """Returns for each token the sum over its experts of Expert(score * x), as `experts.routed_experts` does."""
    T, D = sizes(x, "T D")
    k = experts.shape[1]
    assert gate_up.n_experts is not None, "a stack of experts"
    slots = group_by_expert(experts.flatten(), gate_up.n_experts, 1)
    rows = x.new_empty(T * k, D).index_copy_(0, slots.slot, (x[:, None] * scores[:, :, None]).flatten(0, 1))  # R D
    gate, up = grouped_linear(rows, gate_up, slots.ends).chunk(2, dim=-1)  # R F
    mixed = grouped_linear(F.silu(gate) * up, down, slots.ends)  # R D
    return mixed[slots.slot].view(T, k, D).sum(1)  # T D


def grouped_linear(x: Tensor, weight: Packed, ends: Tensor) -> Tensor:
    """Returns what `experts.grouped_linear` does, for a packed stack. x [R in], ends int32 [E]; [R out]."""
    return _grouped_linear(x, weight, torch.cat([ends.new_zeros(1), ends]).long())


def greatest(x: Tensor, bar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns what `ranking.greatest` does, for contiguous float32 numbers. x [R V], bar [V]."""
    R, V = sizes(x, "R V")
    peaks, places = torch.empty(R), torch.empty(R, dtype=torch.int64)
    pointer = None if bar is None else bar.data_ptr()
    _loaded().puna_greatest(x.data_ptr(), pointer, R, V, peaks.data_ptr(), places.data_ptr())
    return peaks, places


def room(n_bytes: int) -> Tensor:
    """Returns memory uint8 [n_bytes] for a packed weight: on the border of a cache line, in large pages if it may."""
    return _room.take(n_bytes)


def matrix_of(weight: Packed | None) -> Matrix:
    """Returns the structure that C++ reads; `weight.data` must outlive it. None gives a matrix that is not there."""
    if weight is None:
        return Matrix()
    n_experts = weight.n_experts or 1
    return Matrix(
        data=weight.data.data_ptr(),
        expert_bytes=weight.data.numel() // n_experts,
        kind=KINDS.index(weight.kind),
        n_out=weight.n_out,
        n_in=weight.n_in,
        n_experts=n_experts,
    )


def delta_of(factors: PackedFactors | None) -> Delta:
    """Returns the structure that C++ reads; `factors` must outlive it. None gives one of a map that nobody corrects."""
    if factors is None:
        return Delta()
    n_experts = 1 if factors.table.dim() == 1 else factors.table.shape[1]
    return Delta(matrix_of(factors.a), matrix_of(factors.b), factors.table.data_ptr(), n_experts)


def forward(model: Model, batch: Batch, *, layer_bytes: int) -> None:
    """Runs the decoder over a batch: fills `batch.logits`, stores keys and values. All pointers must be good.

    `layer_bytes` are those of a layer that one token reads: for little work one thread is faster than several.
    """
    is_little = layer_bytes * max(1, batch.n_tokens // 4) < _BYTES_WORTH_A_TEAM
    _loaded().puna_forward(ctypes.byref(model), ctypes.byref(batch), 1 if is_little else _n_threads())


def use_large_pages(memory: Tensor) -> None:
    """Asks the system for large pages, in memory that nobody has written yet. It may decline; nothing else changes."""
    _loaded().puna_large_pages(memory.data_ptr(), memory.nbytes)


class FileMemory:
    """A part of a file as memory, which is read where it is used, until `settle` has read all of it.

    offset: a multiple of the page size, 4096. The file must be longer than `offset + n_bytes`, stay open for `settle`
    and stay as it is. Needs `available()`. Raises OSError where files cannot be memory.
    """

    STEP = 1 << 25
    """Bytes that `settle` reads in one go: as much memory it needs beside what is there."""

    def __init__(self, file: int, offset: int, n_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self._n_bytes = n_bytes
        self._n_settled = 0
        self._address = _loaded().puna_map(file, offset, n_bytes)
        if self._address is None:
            raise OSError(errno.ENOMEM, "it cannot be mapped into memory")
        self.__array_interface__ = {"data": (self._address, False), "shape": (n_bytes,), "typestr": "|u1", "version": 3}

    def tensor(self) -> Tensor:
        """Returns the memory, uint8 [n_bytes], which lives as long as somebody holds it. It must not be written."""
        return torch.from_numpy(np.asarray(self))

    def settle(self) -> bool:
        """Reads the next part into memory that no longer needs the file, in large pages, while others may read it.

        Returns whether there is more. What the system does not want to exchange stays a part of the file.
        """
        n = min(self.STEP, self._n_bytes - self._n_settled)
        start, self._n_settled = self._n_settled, self._n_settled + n
        _loaded().puna_settle(self._address + start, n, self._file, self._offset + start)
        return self._n_settled < self._n_bytes

    def __del__(self) -> None:
        if self._address is not None:
            _loaded().puna_unmap(self._address, self._n_bytes)


def _grouped_linear(x: Tensor, weight: Packed, begins: Tensor) -> Tensor:
    """Rows of expert e, begins[e] to begins[e + 1], times its matrix; begins int64 [E+1]. Result in the dtype of x."""
    rows = x.detach().float().contiguous()
    out = torch.empty(rows.shape[0], weight.n_out)
    matrix = matrix_of(weight)
    _loaded().puna_grouped_linear(
        ctypes.byref(matrix), rows.data_ptr(), begins.data_ptr(), out.data_ptr(), _n_threads()
    )
    return out.to(x.dtype)


def _narrowest(weight: Int8) -> Kind:
    least, most = weight.codes.aminmax() if weight.codes.numel() else (0, 0)
    return "int6" if least >= -32 and most <= 31 else "int8"


def _pack_one(kind: Kind, codes: Tensor, scales: Tensor | None, n_out: int, n_in: int, target: Tensor) -> None:
    if kind == "int4" and n_in % GROUP:
        raise ValueError(f"int4 has groups of {GROUP} inputs, got {n_in} inputs")
    source = codes.contiguous()
    factors = None if scales is None else scales.to(torch.bfloat16 if kind == "int4" else torch.float32).contiguous()
    _loaded().puna_pack(
        KINDS.index(kind),
        source.data_ptr(),
        None if factors is None else factors.data_ptr(),
        n_out,
        n_in,
        target.data_ptr(),
        _n_threads(),
    )


class _Room:
    """Memory for packed weights in large pages: with small ones a core reads a sixth less of it in a second.

    Small matrices share a piece, so that no page is taken for a corner of it; a piece is freed with the last of them.
    """

    PIECE_BYTES = 1 << 25

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, n_bytes: int) -> Tensor:
        """Returns memory that begins on the border of a cache line."""
        padded = -(-n_bytes // 64) * 64
        if padded > len(self._left):
            if padded >= self.PIECE_BYTES:
                return _aligned(n_bytes)
            self._left = _aligned(self.PIECE_BYTES)
        taken, self._left = self._left[:n_bytes], self._left[padded:]
        return taken


_room = _Room()


def _aligned(n_bytes: int) -> Tensor:
    room = torch.empty(n_bytes + 64, dtype=torch.uint8)
    use_large_pages(room)
    return room.narrow(0, -room.data_ptr() % 64, n_bytes)


def _n_threads() -> int:
    return torch.get_num_threads()


def _loaded() -> ctypes.CDLL:
    loaded = _library()
    assert loaded is not None, "callers ask `available` first"
    return loaded


@cache
def _library() -> ctypes.CDLL | None:
    pointer, number, count = c_void_p, c_int64, c_int32
    signatures: Signatures = {
        "puna_matrix_bytes": ((count, number, number), number),
        "puna_pack": ((count, pointer, pointer, number, number, pointer, count), None),
        "puna_quantize_int4": ((pointer, number, POINTER(c_float), count, pointer, pointer, count), None),
        "puna_grouped_linear": ((POINTER(Matrix), pointer, pointer, pointer, count), None),
        "puna_forward": ((POINTER(Model), POINTER(Batch), count), None),
        "puna_greatest": ((pointer, pointer, number, number, pointer, pointer), None),
        "puna_large_pages": ((pointer, number), None),
        "puna_map": ((count, number, number), pointer),
        "puna_settle": ((pointer, number, count, number), count),
        "puna_unmap": ((pointer, number), None),
        "puna_struct_bytes": ((count,), number),
    }
    loaded = bound(signatures)
    if loaded is None:
        return None
    for number_, structure in enumerate((Matrix, Delta, Deltas, Store, Layer, Model, Entry, Batch)):
        assert ctypes.sizeof(structure) == loaded.puna_struct_bytes(number_), f"{structure.__name__} differs from C++"
    return loaded
