"""Rows whose positions several ranks share: each rank has a stretch of every row, and sees earlier ones where it must.

In: queries, keys and values of a stretch. Out: their attention, as `model.mask.Packed` makes it of whole rows. Global
layers gather the keys and values of all stretches. Chunked layers see one chunk at most: where every stretch begins
with a chunk or a document, they need nothing of others, and nothing is exchanged.
Not here: who has which stretch (`mesh`), where rows come from (`pack`).
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from puna.config import TextConfig
from puna.kernels.attention import attend_rows
from puna.model.mask import visible
from puna.shapes import sizes
from puna.train.exchange import gather


class Stretch:
    """A `KVStore` without a store, for stretch number `place` of the rows. Differentiable.

    positions and documents int64 [B S] are those of the whole rows; the flat batch is this rank's S/ranks tokens of
    each row, one row after the other.
    """

    def __init__(
        self, config: TextConfig, positions: Tensor, documents: Tensor, place: int, group: ProcessGroup
    ) -> None:
        B, S = sizes(positions, "B S")
        self.config, self.group, self.rows = config, group, B
        own = slice(S // group.size() * place, S // group.size() * (place + 1))
        q_positions, q_documents = positions[:, own], documents[:, own]
        self.is_alone = _stand_alone(positions, documents, config.chunk_len, group.size())
        keys = (q_positions, q_documents) if self.is_alone else (positions, documents)
        self.visible_in_chunk = visible(q_positions, q_documents, *keys, chunk_len=config.chunk_len)[:, None]
        self.visible_everywhere = visible(q_positions, q_documents, positions, documents, chunk_len=None)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the attention output [T N H] of q [T N H] over k and v [T K H]."""
        q, k, v = (torch.unflatten(x, 0, (self.rows, -1)) for x in (q, k, v))  # B S/ranks . H
        is_chunked = self.config.chunk_len_of(layer) is not None
        if not (is_chunked and self.is_alone):
            k, v = gather(k, 1, self.group), gather(v, 1, self.group)  # B S K H
        mask = self.visible_in_chunk if is_chunked else self.visible_everywhere
        return attend_rows(q, k, v, mask).flatten(0, 1)  # T N H


def _stand_alone(positions: Tensor, documents: Tensor, chunk_len: int | None, ranks: int) -> bool:
    """Says whether no token of a chunked layer sees across the border of two stretches: the same on every rank."""
    if chunk_len is None:
        return False
    borders = torch.arange(1, ranks, device=positions.device) * (positions.shape[1] // ranks)
    continues = documents[:, borders] == documents[:, borders - 1]
    return not bool((continues & (positions[:, borders] % chunk_len != 0)).any())
