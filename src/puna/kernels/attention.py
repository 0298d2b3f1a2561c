"""Attention of queries over the keys they may see: one function for each way in which keys arrive.

In: queries and keys after RoPE, norm and temperature. Out: mixed values, before the output projection.
Not here: who may see whom (`model/mask`) and where keys are kept (`KVStore`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.shapes import sizes


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


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns the attention output of T queries that are the last T of S positions; each sees all keys up to itself.

    q [T N H], k and v [S K H] with S >= T. Result [T N H] in the dtype of q.
    The query heads of one key head become rows of one matrix product, so keys are never repeated in memory.
    """
    T, N, H = sizes(q, "T N H")
    S, K, _ = sizes(k, f"S K {H}")
    if T == 1:
        return _attend_one(q, k, v)
    heads_k = k.transpose(0, 1).repeat_interleave(N // K, dim=0)  # N S H
    heads_v = v.transpose(0, 1).repeat_interleave(N // K, dim=0)  # N S H
    if T == S:
        mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], heads_k[None], heads_v[None], is_causal=True)
    else:
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)  # T S
        mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], heads_k[None], heads_v[None], attn_mask=seen)
    return mixed[0].transpose(0, 1)  # T N H


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The decode step: one query, so that nothing is masked. Two matrix products beat the library's grouped path."""
    _, N, H = sizes(q, "1 N H")
    K = k.shape[1]
    grouped = q.view(K, N // K, H) * H**-0.5  # K N/K H
    weights = (grouped @ k.permute(1, 2, 0)).float().softmax(-1).to(q.dtype)  # K N/K S
    mixed: Tensor = weights @ v.transpose(0, 1)  # K N/K H
    return mixed.view(1, N, H)  # 1 N H
