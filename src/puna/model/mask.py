"""Who may see whom: the one definition of Llama 4's attention mask, and rows of packed documents that apply it.

Every fast path (pieces of a cache, paged kernels, chunk-aligned splits over ranks) is tested against `visible`.
"""

import torch
from torch import Tensor

from puna.config import TextConfig
from puna.kernels.attention import attend_rows
from puna.shapes import sizes


def visible(
    q_positions: Tensor, q_documents: Tensor, k_positions: Tensor, k_documents: Tensor, chunk_len: int | None
) -> Tensor:
    """Returns which key each query sees, bool [... Tq Tk].

    A query sees a key of the same document that is not after it and, when `chunk_len` is given, lies in the same
    chunk. Chunks are counted from the start of the document; they are no sliding window: the first token of a chunk
    sees only itself. All inputs int64, positions and documents of queries [... Tq], of keys [... Tk].
    Source: architecture of iRoPE layers, llama-models `models/llama4/model.py`.
    """
    q, k = q_positions[..., :, None], k_positions[..., None, :]
    seen = (k <= q) & (q_documents[..., :, None] == k_documents[..., None, :])
    return seen if chunk_len is None else seen & (q // chunk_len == k // chunk_len)


class Packed:
    """A `KVStore` without a store: rows of whole documents that see nothing but themselves. Differentiable.

    positions and documents int64 [B S]: the position of each token within its document and the document's number
    within the row. Padding is a document of its own, conventionally -1. The flat batch is the rows one after another.
    """

    def __init__(self, config: TextConfig, positions: Tensor, documents: Tensor) -> None:
        self.rows, self.row_len = sizes(positions, "B S")
        self.config = config
        same = (positions, documents, positions, documents)
        self.visible_everywhere = visible(*same, chunk_len=None)[:, None]  # B 1 S S
        self.visible_in_chunk = visible(*same, chunk_len=config.chunk_len)[:, None]  # B 1 S S

    @classmethod
    def single(cls, config: TextConfig, length: int, device: torch.device | str = "cpu") -> "Packed":
        """Returns the store for one document of `length` tokens, as when a whole prompt is scored at once."""
        return cls(
            config, torch.arange(length, device=device)[None], torch.zeros(1, length, dtype=torch.int64, device=device)
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the attention output [T N H] of q [T N H] over k and v [T K H]."""
        mask = self.visible_everywhere if self.config.chunk_len_of(layer) is None else self.visible_in_chunk
        q, k, v = (torch.unflatten(x, 0, (self.rows, self.row_len)) for x in (q, k, v))  # B S . H
        return attend_rows(q, k, v, mask).flatten(0, 1)  # T N H
