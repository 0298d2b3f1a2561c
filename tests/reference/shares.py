"""Small models of both published shapes, the ways to divide them over two and four ranks, and their filled shares."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.kernels.formats import Small
from puna.model.transformer import Llama
from puna.parallel import Layout, Mesh, Share, ShareOfLlama
from puna.quant import swap
from tests.reference.tiny import random_model, tiny_config

Place = Callable[[Llama, str, Tensor | Small], None]

ON_TWO = (Layout(tensor=2), Layout(expert=2), Layout(pipeline=2))
ON_FOUR = (
    Layout(tensor=4),  # two ranks for each key head
    Layout(expert=4),
    Layout(tensor=2, expert=2),
    Layout(pipeline=4),
    Layout(tensor=2, pipeline=2),
    Layout(expert=2, pipeline=2),
)


def scout() -> LlamaConfig:
    """Routed in every layer, one expert a token."""
    config = tiny_config()
    return replace(config, text=replace(config.text, moe_layers=frozenset(range(4))))


def maverick() -> LlamaConfig:
    """Dense and routed layers in turn, more experts, no norm of queries and keys; two experts a token, as some like."""
    config = tiny_config()
    return replace(config, text=replace(config.text, qk_norm=False, n_experts=8, n_active_experts=2))


def widened(config: LlamaConfig) -> LlamaConfig:
    """The configuration with widths of which every quarter is a whole number of groups of small numbers."""
    text = replace(config.text, width=64, head_dim=32, expert_width=128, dense_width=256)
    return replace(config, text=text)


SHAPES = {"scout": scout(), "maverick": maverick()}


def put(model: Llama, name: str, weight: Tensor | Small) -> None:
    """Puts a parameter into a model as it is."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(weight))


def filled(model: Llama, parameters: Mapping[str, Tensor | Small], place: Place) -> Llama:
    """Returns the model, made on the meta device, with these parameters of the whole in it, or its share of them."""
    for name, weight in parameters.items():
        if not isinstance(model, ShareOfLlama):
            place(model, name, weight)
        elif own := model.share.own_name(name):
            place(model, own, model.share.part(name, weight))
    return model.eval().requires_grad_(False)


def parameters_of(config: LlamaConfig, to: swap.Format | None = None) -> dict[str, Tensor | Small]:
    """The parameters of the random model of a configuration, or what a checkpoint in small numbers has of them."""
    parameters = {name: parameter.detach() for name, parameter in random_model(config).named_parameters()}
    if to is None:
        return parameters
    policy = swap.Policy(to=to)
    return {
        name: policy.shrink(name, w) if policy.covers(name, tuple(w.shape)) else w for name, w in parameters.items()
    }


def share_of(
    config: LlamaConfig,
    layout: Layout,
    kind: Callable[[Share, Mesh], ShareOfLlama] = ShareOfLlama,
    *,
    place: Place = put,
    stored: swap.Format | None = None,
) -> ShareOfLlama:
    """Returns this rank's part of the random model of a configuration, cut from what `parameters_of` returns."""
    mesh = Mesh(layout)
    share = Share(config, layout, mesh.rank)
    with torch.device("meta"):
        model = kind(share, mesh)
    filled(model, parameters_of(config, stored), place)
    return model
