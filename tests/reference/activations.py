"""The twin of `plan.activations`: the model's own code is run without memory, and what autograd keeps of it is counted.

In: a configuration, a layout and the shape of a batch. Out: bytes that one rank keeps of one batch, per layer and for
the vision tower. Tensors on the meta device have shapes and nothing else, so a Scout is measured in seconds anywhere.
Experts are taken as evenly loaded. What kernels need besides while they run is not counted.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from puna.config import LlamaConfig, TextConfig
from puna.kernels.attention import attend_rows
from puna.model.attention import KVStore
from puna.model.moe import Experts
from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Block
from puna.model.vision import VisionTower
from puna.train.banded import Banded
from puna.train.next_token import normalise
from puna.train.recipe import BatchRecipe, ParallelRecipe


class Kept:
    """Bytes that one rank keeps of one batch.

    layer(i)   of decoder layer i, all of it
    tower      of the vision tower
    """

    def __init__(self, config: LlamaConfig, layout: ParallelRecipe, batch: BatchRecipe, dtype: torch.dtype) -> None:
        self.config, self.layout, self.batch, self.dtype = config, layout, batch, dtype
        self.tower = self._tower()
        self._layers: dict[tuple[bool, bool], int] = {}

    def layer(self, index: int) -> int:
        """Returns the bytes of one decoder layer; layers of one kind keep as much as each other."""
        text = self.config.text
        kind = (index in text.rope_layers, text.is_moe(index))
        if kind not in self._layers:
            self._layers[kind] = self._layer(index)
        return self._layers[kind]

    def _layer(self, index: int) -> int:
        layout, batch = self.layout, self.batch
        text = _share(self.config.text, layout.tensor)
        length = batch.row_len // layout.context
        with torch.device("meta"):
            block = Block(text, index).to(self.dtype)
            if block.moe is not None:
                whole = Experts(self.config.text)
                block.moe.experts = _Even(whole, layout.tensor).to(self.dtype)  # type: ignore[assignment]
            positions = torch.empty(batch.rows, batch.row_len, dtype=torch.int64)
            own = positions[:, :length].flatten()
            store: KVStore = Banded(text, positions, positions)
            if layout.context > 1:
                store = _Gathered(batch.rows, layout.context)
            rotation = text_rotation(own, text_frequencies(text))
            scale = text.query_temperature
            temperature = None if scale is None else query_temperature(own, scale)
            x = torch.empty(len(own), text.width, dtype=self.dtype, requires_grad=True)
        return kept(lambda: block(x, rotation, temperature, store), block)

    def _tower(self) -> int:
        vision = self.config.vision
        if vision is None or not self.batch.tiles:
            return 0
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
            tower = VisionTower(vision).to(self.dtype)
            size = vision.tile_size
            tiles = torch.empty(self.batch.tiles, 3, size, size, dtype=torch.uint8)
            return kept(lambda: tower(normalise(tiles)), tower)


def _share(text: TextConfig, tensor: int) -> TextConfig:
    """Returns the decoder as a rank sees it that shares its matrices with others: narrower, but for routed experts."""
    return replace(
        text,
        n_heads=text.n_heads // tensor,
        n_kv_heads=text.n_kv_heads // tensor,
        dense_width=text.dense_width // tensor,
        expert_width=text.expert_width // tensor,
    )


def kept(run: Callable[[], object], module: nn.Module) -> int:
    """Returns the bytes of all memory that a forward pass saves, each once, without that of the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    found: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage()._cdata] = x  # held, so that no other memory gets this number
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = run()
    assert out is not None
    return sum(x.untyped_storage().nbytes() for number, x in found.items() if number not in weights)


class _Even(nn.Module):
    """Stands for routed experts among which rows are spread evenly: a rank computes as many as it has."""

    def __init__(self, experts: Experts, tensor: int) -> None:
        super().__init__()
        self.gate_up, self.down, self.tensor = experts.gate_up, experts.down, tensor

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        rows, scores, experts = (each[: len(each) // self.tensor] for each in (x, scores, experts))
        order = experts.flatten()  # T k
        moved = (rows[:, None] * scores[:, :, None]).flatten(0, 1)
        grouped = moved.new_zeros(moved.shape).index_copy(0, order, moved)
        gate, up = F.linear(grouped, self.gate_up[0]).chunk(2, dim=-1)
        made = F.linear(F.silu(gate) * up, self.down[0])
        return made[order].view(*experts.shape, -1).sum(1).repeat(self.tensor, 1)


class _Gathered:
    """A `KVStore` for a stretch of each row, which sees the keys of all. Scores count as without fused kernels."""

    def __init__(self, rows: int, stretches: int) -> None:
        self.rows, self.stretches = rows, stretches

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (torch.unflatten(each, 0, (self.rows, -1)) for each in (q, k, v))
        k, v = k.repeat(1, self.stretches, 1, 1), v.repeat(1, self.stretches, 1, 1)
        visible = torch.empty(self.rows, 1, q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        return attend_rows(q, k, v, visible).flatten(0, 1)
