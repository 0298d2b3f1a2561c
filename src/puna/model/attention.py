"""Self-attention of the decoder: RoPE layers confined to chunks, NoPE layers that see everything.

In: normed hidden states. Out: what the layer adds to the residual stream. Where keys live and which of them a query
sees is the business of the `KVStore` that comes in with the batch (docs/decisions/002).
Source: llama-models `models/llama4/model.py`.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from puna.config import TextConfig
from puna.model.deltas import Deltas, through
from puna.model.layers import rms_norm
from puna.model.rope import Rotation, rotate


class KVStore(Protocol):
    """Keeps keys and values of a flat batch, or only passes them on, and attends over those that are visible."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns [T N H] for q [T N H], k and v [T K H], which come rotated, normed and scaled."""
        ...


class Attention(nn.Module):
    """Attention of one layer. RoPE layers rotate, then norm each head (no weight); NoPE layers scale their queries."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.uses_rope = layer in config.rope_layers
        self.norm_eps = config.norm_eps if config.qk_norm and self.uses_rope else None
        self.query = nn.Linear(config.width, config.n_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.width, config.n_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.width, config.n_kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.n_heads * config.head_dim, config.width, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, temperature: Tensor | None, store: KVStore, deltas: Deltas | None = None
    ) -> Tensor:
        """x [T D], rotation of each token, temperature float32 [T 1 1] or None for none. Result [T D]."""
        q = torch.unflatten(through(self.query, x, deltas), -1, (-1, self.head_dim))  # T N H
        k = torch.unflatten(through(self.key, x, deltas), -1, (-1, self.head_dim))  # T K H
        v = torch.unflatten(through(self.value, x, deltas), -1, (-1, self.head_dim))  # T K H
        if self.uses_rope:
            q, k = rotate(q, rotation), rotate(k, rotation)
            if self.norm_eps is not None:
                q, k = rms_norm(q, self.norm_eps), rms_norm(k, self.norm_eps)
        elif temperature is not None:
            q = (q * temperature).to(q.dtype)  # T N H
        mixed = store.attend(self.layer, q, k, v)  # T N H
        return through(self.output, mixed.flatten(1), deltas)  # T D
