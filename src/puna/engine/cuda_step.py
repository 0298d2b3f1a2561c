"""One forward of the decoder on a GPU, in the fewest launches that the model's own modules allow.

In: `Inputs`. Out: states behind the last layer, or logits; keys and values are stored on the way. Nothing is read
back to the host, so that a CUDA graph can hold a whole step.
Matrices that read the same states (query, key and value; gate and up) are joined into one when the step is made; the
model keeps its parameters as views of them. The plain twin is `model.hidden` with a `PagedStore`.
Not here: capture and replay (`cuda_graphs`), kernels (`kernels/triton_*`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from puna.engine.cache import KVCache, kind_of
from puna.engine.cuda_inputs import Inputs
from puna.kernels import experts as dense
from puna.kernels.formats import Fp8, Int4, Int8, Small
from puna.kernels.quantized import linear
from puna.kernels.triton_attention import attend_decode, attend_prefill
from puna.kernels.triton_decoder import Turn, add_norm, route, to_heads
from puna.kernels.triton_experts import routed_experts, swiglu
from puna.model.fusion import fuse
from puna.model.layers import SwiGLU
from puna.model.moe import MoE
from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Block, Llama
from puna.shapes import sizes

MANY_ROWS = 1024
"""From this many routed rows on plain bfloat16 experts go through torch's grouped product. A guess, unmeasured."""

Weight = Tensor | Small


class DecoderStep:
    """The decoder of one model over one cache."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        text = model.config.text
        self.device = model.embedding.weight.device
        self._frequencies = text_frequencies(text).to(self.device)
        self._layers = [
            _Layer(block, joined([block.attention.query, block.attention.key, block.attention.value]), _gate_up(block))
            for block in model.layers
            if isinstance(block, Block)
        ]
        self._widths = [n * text.head_dim for n in (text.n_heads, text.n_kv_heads, text.n_kv_heads)]

    def logits(self, inputs: Inputs, features: Tensor | None = None, wanted: Tensor | None = None) -> Tensor:
        """Returns float32 logits [R V] of the rows `wanted` int64 [R], of all by default."""
        states = self.states(inputs, features)
        return self._model.logits(states if wanted is None else states[wanted])

    def states(self, inputs: Inputs, features: Tensor | None = None) -> Tensor:
        """Returns the normed states [T D] behind the last layer; features [M D] replace patch tokens in order."""
        model, text = self._model, self._model.config.text
        x = model.embedding(inputs.ids)  # T D
        if features is not None and model.config.patch_id is not None:
            x = fuse(x, inputs.ids.eq(model.config.patch_id), features)
        turn = self._turn(inputs.positions)
        gains = [*(layer.block.attention_norm.weight for layer in self._layers[1:]), model.norm.weight]
        x, h = add_norm(x, None, self._layers[0].block.attention_norm.weight, text.norm_eps)
        for i, (layer, next_gain) in enumerate(zip(self._layers, gains, strict=True)):
            x, h = add_norm(
                x, self._attention(i, layer, h, turn, inputs), layer.block.feed_forward_norm.weight, text.norm_eps
            )
            x, h = add_norm(x, _feed_forward(layer, h), next_gain, text.norm_eps)
        return h

    def _turn(self, positions: Tensor) -> Turn:
        rotation = text_rotation(positions, self._frequencies)  # T 1 H/2
        scale = self._model.config.text.query_temperature
        one = torch.ones(len(positions), device=self.device)
        temperature = one if scale is None else query_temperature(positions, scale).flatten()  # T
        return Turn(rotation.cos[:, 0].contiguous(), rotation.sin[:, 0].contiguous(), temperature)

    def _attention(self, i: int, layer: "_Layer", h: Tensor, turn: Turn, inputs: Inputs) -> Tensor:
        attention, kind = layer.block.attention, kind_of(self._model.config.text, i)
        q, k, v = torch.split(linear(h, layer.query_key_value), self._widths, dim=1)  # T NH, T KH, T KH
        pool, where = self._cache.stored(i), inputs.places[kind]
        heads = to_heads(
            q, k, v, turn, pool, where.own, rotates=attention.uses_rope, norm_eps=attention.norm_eps
        )  # T N H
        mixed = torch.empty_like(heads)
        attend_decode(heads, pool, where, inputs.rows, mixed, longest=inputs.longest[kind])
        attend_prefill(heads, pool, where, inputs.tiles, mixed)
        out: Tensor = attention.output(mixed.flatten(1))  # T D
        return out


class _Layer(NamedTuple):
    """A layer and its joined matrices."""

    block: Block
    query_key_value: Weight
    gate_up: Weight


def joined(maps: Sequence[nn.Module]) -> Weight:
    """Returns the weights [out in] of linear maps as one [sum of outs, in]; the maps keep theirs as views of it.

    All must be in one format and without bias, as a Llama's are; raises ValueError otherwise.
    """
    kinds = {type(each.weight) for each in maps}
    if len(kinds) > 1 or any(each.bias is not None for each in maps):
        raise ValueError(f"linear maps of one input differ, or have biases: {sorted(kind.__name__ for kind in kinds)}")
    if all(isinstance(each, nn.Linear) for each in maps):
        return _joined([(each, "weight") for each in maps])
    held = [each.get_submodule("held") for each in maps]
    codes = _joined([(each, "codes") for each in held])
    small: type[object] = kinds.pop()
    if small not in (Int4, Int8, Fp8):
        return codes
    return small(codes, _joined([(each, "scales") for each in held]))


def _joined(parts: Sequence[tuple[nn.Module, str]]) -> Tensor:
    tensors = [getattr(owner, name) for owner, name in parts]
    whole = torch.cat([each.detach() for each in tensors])
    for (owner, name), view in zip(parts, torch.split(whole, [len(each) for each in tensors]), strict=True):
        setattr(owner, name, nn.Parameter(view, requires_grad=False) if name == "weight" else view)
    return whole


def _gate_up(block: Block) -> Weight:
    shared = block.mlp if block.moe is None else block.moe.shared
    assert isinstance(shared, SwiGLU), "a layer is dense or routed"
    return joined([shared.gate, shared.up])


def _feed_forward(layer: _Layer, h: Tensor) -> Tensor:
    """Returns what the dense layer, or the shared and the routed experts, add to the residual stream, [T D]."""
    moe = layer.block.moe
    if moe is None:
        assert layer.block.mlp is not None, "a layer is dense or routed"
        out: Tensor = layer.block.mlp.down(swiglu(h, layer.gate_up))
        return out
    shared: Tensor = moe.shared.down(swiglu(h, layer.gate_up))
    return shared + _routed(moe, h)


def _routed(moe: MoE, h: Tensor) -> Tensor:
    T, _ = sizes(h, "T D")
    scores, experts = route(moe.router(h), moe.n_active)
    gate_up, down = moe.experts.gate_up, moe.experts.down
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and T * moe.n_active >= MANY_ROWS:
        return dense.routed_experts(h, scores, experts, gate_up, down)
    return routed_experts(h, scores, experts, gate_up, down)
