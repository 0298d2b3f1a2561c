"""Two caches of one model that read the same texts: one for the plain runner, one for whoever is compared with it."""

from dataclasses import replace

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Layout
from puna.engine.cache import KVCache
from puna.engine.runner import TorchRunner
from puna.model.transformer import Llama
from tests.reference.tiny import tiny_config

N_BLOCKS = 48
N_TEXTS = 4


def two_layers() -> LlamaConfig:
    """A dense chunked layer and a routed global one: all there is, for Triton's interpreter, which is slow."""
    config = tiny_config()
    text = replace(config.text, n_layers=2, rope_layers=frozenset({0}), moe_layers=frozenset({1}))
    return replace(config, text=text)


class Twins:
    """`caches[0]` is the plain runner's. Blocks that were never written hold NaN, which must not matter."""

    def __init__(self, model: Llama, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.model = model.to(device)
        self.layout = Layout.of(model.config.text)
        counts = Counts(N_BLOCKS, N_BLOCKS)
        self.caches = [KVCache(model.config.text, counts, dtype=dtype, device=device) for _ in range(2)]
        for cache in self.caches:
            for part in (*cache.keys, *cache.values):
                part.view(torch.uint8).fill_(0x7F if dtype == torch.int8 else 0xFF)
        self.plain = TorchRunner(self.model, self.caches[0])
        self.lengths = [0] * N_TEXTS
        self._device = device

    def batch(self, pieces: list[tuple[int, list[int]]], features: Tensor | None = None) -> Batch:
        """Returns the batch in which each text reads the ids beside it; all rows are wanted."""
        entries, ids, positions = [], [], []
        for text, new in pieces:
            start, end = self.lengths[text], self.lengths[text] + len(new)
            own = N_BLOCKS // N_TEXTS
            blocks = [text * own + (i * 7) % own for i in range(-(-end // self.layout.block_len))]  # not in order
            base = self.layout.chunk_base(start)
            entries.append(Entry(len(new), start, blocks, blocks[base // self.layout.block_len :], base))
            ids += new
            positions += range(start, end)
            self.lengths[text] = end
        flat, at = (torch.tensor(x, device=self._device) for x in (ids, positions))
        return Batch(flat, at, features, entries, torch.arange(len(ids), device=self._device))
