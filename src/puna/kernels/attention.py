"""Attention of queries over the keys they may see: one function for each way in which keys arrive.

In: queries and keys after RoPE, norm and temperature. Out: mixed values, before the output projection.
Keys and values that are remembered lie in blocks (`Stored`), in a float format or in 8 bits with a scale for each
position and head; every way of attending reads what is stored, so a text read in one piece and in many agrees.
Not here: who may see whom (`model/mask`) and which block belongs to whom (`engine/blocks`).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.shapes import sizes

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the largest number of each 8-bit format


class Stored(NamedTuple):
    """Keys and values of one layer in blocks: codes [n_blocks K block_len H] each.

    Scales are float32 [n_blocks K block_len] where codes are int8 or float8_e4m3fn (value = code * scale), else None.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None


def attend_rows(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Returns the attention output of whole rows under a mask. Differentiable.

    q [B S N H], k and v [B S K H], visible bool [B 1 S S] (True: the query on the third axis sees the key on the
    fourth; each query must see at least one key). Result [B S N H] in the dtype of q.
    """
    B, S, N, H = sizes(q, "B S N H")
    groups = N // k.shape[2]
    q = q.transpose(1, 2)  # B N S H
    k = k.transpose(1, 2).repeat_interleave(groups, dim=1)  # B N S H
    v = v.transpose(1, 2).repeat_interleave(groups, dim=1)  # B N S H
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # B N S H
    return mixed.transpose(1, 2)  # B S N H


def write_paged(stored: Stored, blocks: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
    """Stores `k` and `v` [T K H]: token t goes to slot offsets[t] of block blocks[t], both int64 [T]."""
    for x, codes, scales in ((k, stored.keys, stored.key_scales), (v, stored.values, stored.value_scales)):
        if scales is None:
            codes[blocks, :, offsets] = x.to(codes.dtype)
        else:
            small, scale = shrink(x, codes.dtype)
            _as_bytes(codes)[blocks, :, offsets] = _as_bytes(small)
            scales[blocks, :, offsets] = scale


def attend_paged(q: Tensor, stored: Stored, heads: Tensor, n_keys: int) -> Tensor:
    """Returns the attention output of T queries that are the last T of `n_keys` stored positions.

    q [T N H]; heads int64 [K n] as `head_rows` makes them. Result [T N H] in the dtype of q.
    """
    keys = _gathered(stored.keys, stored.key_scales, heads, q.dtype)[:, :n_keys]
    values = _gathered(stored.values, stored.value_scales, heads, q.dtype)[:, :n_keys]
    return attend_causal(q, keys, values)  # T N H


def head_rows(table: Tensor, n_kv_heads: int) -> Tensor:
    """Returns the rows [K n] of a layer's blocks, seen as [n_blocks * K ...], that hold the blocks of `table` [n]."""
    return table[None, :] * n_kv_heads + torch.arange(n_kv_heads, device=table.device)[:, None]  # K n


def shrink(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns `x` [T K H] in 8 bits, and the scale float32 [T K] of each row that it is to be multiplied with."""
    wide = x.float()
    scale = wide.abs().amax(-1) / _LARGEST[dtype]  # T K
    scaled = wide / scale.where(scale > 0, 1.0)[..., None]  # T K H
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns the attention output of T queries that are the last T of S positions; each sees all keys up to itself.

    q [T N H], k and v [K S H] with S >= T. Result [T N H] in the dtype of q.
    The query heads of one key head become rows of one matrix product, so keys of the past are never repeated.
    """
    T, N, H = sizes(q, "T N H")
    K, S, _ = sizes(k, f"K S {H}")
    if T == 1:
        return _attend_one(q, k, v)
    if q.device.type == "cpu" and T < S:
        return _attend_past_and_present(q, k, v)
    groups = N // K
    heads_q = q.transpose(0, 1)[None]  # 1 N T H
    heads_k, heads_v = (x.repeat_interleave(groups, dim=0)[None] for x in (k, v))  # 1 N S H
    if T == S:
        mixed = F.scaled_dot_product_attention(heads_q, heads_k, heads_v, is_causal=True)
    else:
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)  # T S
        mixed = F.scaled_dot_product_attention(heads_q, heads_k, heads_v, attn_mask=seen)
    return mixed[0].transpose(0, 1)  # T N H


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The decode step: one query, so that nothing is masked. Two matrix products beat the library's grouped path."""
    _, N, H = sizes(q, "1 N H")
    K = k.shape[0]
    grouped = q.reshape(K, N // K, H) * H**-0.5  # K N/K H
    weights = (grouped @ k.transpose(1, 2)).float().softmax(-1).to(q.dtype)  # K N/K S
    mixed: Tensor = weights @ v  # K N/K H
    return mixed.view(1, N, H)  # 1 N H


def _attend_past_and_present(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend_causal` without a mask of T x S, which a long past would not leave room for.

    The past is seen whole by every query, the present causally; both are joined by their normalisers.
    """
    T, N, H = sizes(q, "T N H")
    K, S, _ = sizes(k, f"K S {H}")
    groups, past = N // K, S - T
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the library's own, with its normalisers
    heads_q = q.transpose(0, 1)  # N T H
    grouped = heads_q.reshape(1, K, groups * T, H)
    seen, seen_weight = flash(grouped, k[None, :, :past], v[None, :, :past])
    seen, seen_weight = seen.reshape(N, T, H), seen_weight.reshape(N, T)
    new_k, new_v = (x[:, past:].repeat_interleave(groups, dim=0)[None] for x in (k, v))  # 1 N T H
    new, new_weight = flash(heads_q[None], new_k, new_v, 0.0, True)
    share = torch.sigmoid(seen_weight.float() - new_weight[0].float())[..., None]  # N T 1, of the past
    mixed: Tensor = share * seen.float() + (1 - share) * new[0].float()  # N T H
    mixed = mixed.to(q.dtype)
    return mixed.transpose(0, 1)  # T N H


def _gathered(codes: Tensor, scales: Tensor | None, heads: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what is stored in the rows `heads` [K n] as one stretch of each head [K n*block_len H], in `dtype`."""
    _, K, block_len, H = sizes(codes, "n K block_len H")
    rows = heads.flatten()  # K*n
    taken = _as_bytes(codes).view(-1, block_len * H).index_select(0, rows)
    taken = taken.view(codes.dtype).view(K, -1, H)  # K n*block_len H
    if scales is None:
        return taken.to(dtype)
    return (taken.float() * scales.view(-1, block_len).index_select(0, rows).view(K, -1, 1)).to(dtype)


def _as_bytes(x: Tensor) -> Tensor:
    """Returns float8 tensors as bytes, since few operations know them; others as they are."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
