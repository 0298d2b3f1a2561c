"""The parts of a training step that are no plain matrix product, on the processor, in C++ (`native/`).

In: bfloat16 activations and weights in torch's own order. Out: results and gradients in the same. Sums are float32.
Not here: when this is used, which `experts`, `cross_entropy` and `adamw` say, who also have the plain twins.
"""

import ctypes
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from puna.kernels.build import Signatures, bound
from puna.shapes import sizes

PANEL = 64
"""Rows of an expert that are worked on together. Source: WIDE of products.h."""

PIECE = 1 << 15
"""Numbers whose squares are added up together. Source: adamw.h."""

LANES = 16
"""Of which the width of a head must be a multiple."""

UNIT = 32
"""Of which the widths of experts must be multiples."""


class AdamWStep(Structure):
    """`AdamW` of adamw.h: what a step does to every number."""

    _fields_ = (
        ("scale", c_float),
        ("beta1", c_float),
        ("beta2", c_float),
        ("eps", c_float),
        ("kept", c_float),
        ("rate", c_float),
        ("correction", c_float),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Returns whether the kernels are there; a graph takes it for granted."""
    return _library() is not None


class AttentionShape(Structure):
    """`AttentionShape` of rows_attention.h."""

    _fields_ = (
        ("n_rows", c_int64),
        ("row_len", c_int64),
        ("n_heads", c_int64),
        ("n_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("first", c_void_p),
        ("count", c_void_p),
        ("scale", c_float),
    )


def can_train(*tensors: Tensor) -> bool:
    """Returns whether the kernels are there, and all tensors are bfloat16 numbers of the processor."""
    return all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in tensors) and available()


def can_update(x: Tensor) -> bool:
    """Returns whether the kernels are there, and x is float32 or bfloat16 numbers of the processor."""
    return x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu" and available()


@torch.library.custom_op("puna::swiglu", mutates_args=())
def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the experts make of their rows, [R D], and the gate and up of each panel, [P 2F 64].

    x bf16 [R D], gate_up bf16 [E 2F D], down bf16 [E D F], ends int32 [E], ascending to R. D and F are multiples of
    32. A panel is up to 64 rows of one expert; those of an expert lie together, and some at the end are not used.
    Differentiable in x and both weights.
    """
    R, D = sizes(x, "R D")
    E, _, F = sizes(down, f"E {D} F")
    x, gate_up, down = x.contiguous(), gate_up.contiguous(), down.contiguous()
    out, hidden = torch.empty_like(x), _hidden(x, E, F)
    _loaded().puna_swiglu(*_pointers(x, gate_up, down, ends), E, D, F, *_pointers(out, hidden), torch.get_num_threads())
    return out, hidden


@swiglu.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _hidden(x, down.shape[0], down.shape[2])


@torch.library.custom_op("puna::swiglu_backward", mutates_args=())
def swiglu_backward(
    by_out: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, gate_up and down from `by_out` [R D], that of the output of `swiglu`."""
    E, D, F = sizes(down, "E D F")
    by_out, x, gate_up, down = by_out.contiguous(), x.contiguous(), gate_up.contiguous(), down.contiguous()
    between = torch.empty_like(hidden), torch.empty_like(hidden[:, :F])
    gradients = torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down)
    _loaded().puna_swiglu_backward(
        *_pointers(by_out, x, gate_up, down, ends),
        *(E, D, F),
        *_pointers(hidden, *between, *gradients),
        torch.get_num_threads(),
    )
    return gradients


@swiglu_backward.register_fake
def _(
    by_out: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, by_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*swiglu_backward(by_out, *ctx.saved_tensors), None)


swiglu.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("puna::rows_attention", mutates_args=())
def rows_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Returns attention over rows of tokens, [T N H], and the logarithm of each query's sum, float32 [B N S].

    q bf16 [T N H], k and v bf16 [T K H], H a multiple of 16; a query sees `count` keys of its row from `first` on,
    int32 [B S] each, itself among them. Scores are divided by the root of H. Differentiable in q, k and v.
    """
    T, N, _ = sizes(q, "T N H")
    B, S = sizes(first, "B S")
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, sums = torch.empty_like(q), torch.empty(B, N, S)
    shape = _attention_shape(q, k, first, count)
    _loaded().puna_rows_attention(ctypes.byref(shape), *_pointers(q, k, v, out, sums), torch.get_num_threads())
    return out, sums


@rows_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    B, S = first.shape
    return torch.empty(q.shape, dtype=q.dtype), torch.empty(B, q.shape[1], S)


@torch.library.custom_op("puna::rows_attention_backward", mutates_args=())
def rows_attention_backward(
    by_out: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, count: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v from `by_out` [T N H], that of the output of `rows_attention`."""
    by_out, q, k, v = by_out.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    shape = _attention_shape(q, k, first, count)
    _loaded().puna_rows_attention_backward(
        ctypes.byref(shape), *_pointers(by_out, q, k, v, out, sums, *gradients), torch.get_num_threads()
    )
    return gradients


@rows_attention_backward.register_fake
def _(
    by_out: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, count: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype), torch.empty(v.shape, dtype=v.dtype)


def _keep_attention(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _attention_gradients(ctx: Any, by_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*rows_attention_backward(by_out, *ctx.saved_tensors), None, None)


rows_attention.register_autograd(_attention_gradients, setup_context=_keep_attention)


def _attention_shape(q: Tensor, k: Tensor, first: Tensor, count: Tensor) -> AttentionShape:
    (B, S), (_, N, H) = sizes(first, "B S"), sizes(q, "T N H")
    return AttentionShape(B, S, N, k.shape[1], H, first.data_ptr(), count.data_ptr(), H**-0.5)


@torch.library.custom_op("puna::cross_entropy_", mutates_args=("logits",))
def cross_entropy_(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Returns the cross entropy of each row, float32 [C], and leaves its gradient times weight in `logits`.

    logits bf16 [C V], targets int64 [C], weights float32 [C]. Where a row holds what is not finite its loss and
    gradients are NaN.
    """
    C, V = sizes(logits, "C V")
    losses = torch.empty(C)
    _loaded().puna_cross_entropy(
        *_pointers(logits, targets.contiguous(), weights.contiguous()), C, V, losses.data_ptr(), torch.get_num_threads()
    )
    return losses


@cross_entropy_.register_fake
def _(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return torch.empty_like(weights)


def sum_of_squares(x: Tensor) -> Tensor:
    """Returns the sum of the squares of contiguous float32 or bf16 numbers, float32 scalar; the same on any number of
    threads."""
    sums = torch.empty(-(-x.numel() // PIECE))
    _loaded().puna_squares(x.data_ptr(), x.dtype == torch.bfloat16, x.numel(), sums.data_ptr(), torch.get_num_threads())
    return sums.sum()


def adamw_(step: AdamWStep, gradient: Tensor, rounded: Tensor, master: Tensor, first: Tensor, second: Tensor) -> None:
    """Updates masters and moments, float32, and `rounded`, the parameters, in place; of their dtype, float32 or bf16,
    is the gradient. All contiguous."""
    _loaded().puna_adamw(
        ctypes.byref(step),
        *_pointers(gradient, rounded),
        rounded.dtype == torch.bfloat16,
        rounded.numel(),
        *_pointers(master, first, second),
        torch.get_num_threads(),
    )


def _hidden(x: Tensor, n_experts: int, hidden_width: int) -> Tensor:
    return x.new_empty(x.shape[0] // PANEL + n_experts, 2 * hidden_width, PANEL)


def _pointers(*tensors: Tensor) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _loaded() -> ctypes.CDLL:
    loaded = _library()
    assert loaded is not None, "callers ask `available` first"
    return loaded


@cache
def _library() -> ctypes.CDLL | None:
    pointer, number, count = c_void_p, c_int64, c_int32
    arguments = {
        "puna_swiglu": (pointer,) * 4 + (number,) * 3 + (pointer,) * 2,
        "puna_swiglu_backward": (pointer,) * 5 + (number,) * 3 + (pointer,) * 6,
        "puna_rows_attention": (pointer,) * 6,
        "puna_rows_attention_backward": (pointer,) * 10,
        "puna_cross_entropy": (pointer, pointer, pointer, number, number, pointer),
        "puna_squares": (pointer, count, number, pointer),
        "puna_adamw": (pointer, pointer, pointer, count, number, pointer, pointer, pointer),
    }
    # the last argument of each is the number of threads
    signatures: Signatures = {name: ((*types, count), None) for name, types in arguments.items()}
    loaded = bound({**signatures, "puna_training_struct_bytes": ((count,), number)})
    if loaded is None:
        return None
    for place, structure in enumerate((AdamWStep, AttentionShape)):
        same = ctypes.sizeof(structure) == loaded.puna_training_struct_bytes(place)
        assert same, f"{structure.__name__} differs from C++"
    return loaded
