"""The routed experts of a layer whose weights are off the device, and how a layer foresees what the next one needs.

In and out: as `model.moe.Experts`, with the same numbers, bit for bit. For answering only: what a weight was is
forgotten when its place in the cache is taken, so that nothing can be trained through it.
Foreseeing needs no help from the model: the input h of this layer's experts is the residual stream, normed, times a
gain. Taking that gain out and the next layer's in gives what the next router would see if nothing came in between, so
router' @ (h / gain * gain') is the guess, and the gains go into one small matrix, once (docs/decisions/010).
Not here: the cache and its thread (`cache`), bytes (`record`, `store`).
"""

from contextlib import closing
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.errors import ConfigError
from puna.kernels.arriving_experts import arriving_experts, arriving_small_experts
from puna.model.moe import MoE
from puna.model.transformer import Block, Llama
from puna.offload.cache import ExpertCache


class OffloadedExperts(nn.Module):
    """The routed experts of one layer, fetched when they are chosen. Takes the place of `model.moe.Experts`.

    `gate_up` and `down`, where others hold their stacks, are None: whoever can only work on stacks must pass it by.
    """

    gate_up: None = None
    down: None = None
    foresight: Tensor | None

    def __init__(self, cache: ExpertCache, layer: int, next_layer: int | None, foresight: Tensor | None) -> None:
        """foresight [E D] times the input of these experts guesses the router's logits in `next_layer`; None where
        there is no next layer, or nothing shall be fetched on a guess."""
        super().__init__()
        self.cache = cache
        self.layer = layer
        self.next_layer = next_layer
        self.register_buffer("foresight", foresight, persistent=False)

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        """x [T D], scores [T k] in the dtype of x, experts int64 [T k]. Result [T D].

        Raises ConfigError when gradients are asked for, WeightsError when an expert cannot be fetched.
        """
        if torch.is_grad_enabled() and (x.requires_grad or scores.requires_grad):
            raise ConfigError("offload: experts off the device only answer; load the model without it to train")
        with closing(self.cache.visit(self.layer, torch.unique(experts).tolist())) as arrivals:
            if self.next_layer is not None and self.foresight is not None:
                self.cache.expect(self.next_layer, likely(x, self.foresight, experts.shape[1]))
            if self.cache.store.record.is_plain:
                return arriving_experts(x, scores, experts, self.cache.store.experts.n_experts, arrivals)
            return arriving_small_experts(x, scores, experts, arrivals)


def put_off(model: Llama, cache: ExpertCache, *, foresee: bool = True) -> None:
    """Puts `OffloadedExperts` in the place of the experts of every MoE layer of `model`, whose other weights are there.

    foresee: whether the next layer's experts are fetched on a guess while a layer computes, which is of no use where
    the cache has a place for every expert.
    """
    layers = cache.store.experts.layers
    is_whole = cache.n_places == len(cache.store.experts.all_keys())
    following = dict(pairwise(layers)) if foresee and not is_whole else {}
    for layer in layers:
        next_layer = following.get(layer)
        foresight = None if next_layer is None else foresight_of(model, layer, next_layer)
        _moe(_block(model, layer)).add_module("experts", OffloadedExperts(cache, layer, next_layer, foresight))


@torch.no_grad()
def foresight_of(model: Llama, layer: int, next_layer: int) -> Tensor:
    """Returns [E D] that turns the input of one layer's experts into a guess of another layer's router logits."""
    block, next_block = _block(model, layer), _block(model, next_layer)
    gain, next_gain = block.feed_forward_norm.weight.float(), next_block.feed_forward_norm.weight.float()  # D
    router = _moe(next_block).router.weight  # E D
    turn = torch.where(gain == 0, 0, next_gain / gain)  # where the gain is 0, h knows nothing of the stream
    return (router.float() * turn).to(router.dtype)  # E D


def likely(x: Tensor, foresight: Tensor, n_active: int) -> list[int]:
    """Returns the experts that the tokens x [T D] will probably choose, those of the most tokens first."""
    chosen = F.linear(x, foresight).topk(n_active, dim=-1).indices.flatten()  # R
    if x.shape[0] == 1:  # what decoding one answer asks for in every layer
        best: list[int] = chosen.tolist()
        return best
    counts = torch.bincount(chosen, minlength=foresight.shape[0])  # E
    order = counts.argsort(descending=True, stable=True)
    return [expert for expert, n in zip(order.tolist(), counts[order].tolist(), strict=True) if n]


def _block(model: Llama, layer: int) -> Block:
    block = model.layers[layer]
    assert isinstance(block, Block)
    return block


def _moe(block: Block) -> MoE:
    assert block.moe is not None, "only MoE layers have experts"
    return block.moe
