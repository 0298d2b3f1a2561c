"""Llama 4 whole: token ids and image features in, logits out.

The batch is flat: T tokens of any number of sequences, each with its true position. What belongs together and what is
already known of earlier tokens is the `KVStore`'s business.
Source: llama-models `models/llama4/model.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig, TextConfig
from puna.errors import PromptError
from puna.model.attention import Attention, KVStore
from puna.model.deltas import Deltas, through
from puna.model.fusion import fuse
from puna.model.layers import RMSNorm, SwiGLU
from puna.model.moe import MoE, Route
from puna.model.rope import Rotation, query_temperature, text_frequencies, text_rotation
from puna.model.vision import VisionTower
from puna.shapes import sizes


class Hidden(NamedTuple):
    """What the decoder knows after its last layer: normed states [T D] and the route of each MoE layer."""

    states: Tensor
    routes: tuple[Route, ...]


class Block(nn.Module):
    """One decoder layer: attention, then either experts or one dense feed-forward."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.moe = MoE(config) if config.is_moe(layer) else None
        self.mlp = None if config.is_moe(layer) else SwiGLU(config.width, config.dense_width)

    def forward(
        self, x: Tensor, rotation: Rotation, temperature: Tensor | None, store: KVStore, deltas: Deltas | None = None
    ) -> tuple[Tensor, Route | None]:
        """x [T D]. Returns the layer's output [T D] and, for MoE layers, the route."""
        x = x + self.attention(self.attention_norm(x), rotation, temperature, store, deltas)
        h = self.feed_forward_norm(x)
        if self.moe is None:
            assert self.mlp is not None
            return x + self.mlp(h, deltas), None
        out, route = self.moe(h, deltas)
        return x + out, route


class Llama(nn.Module):
    """The model. Build it under `torch.device("meta")` to count, or to load into without holding it twice."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        text = config.text
        self.config = config
        table = torch.empty(
            text.vocab_size, text.width
        )  # ready-made, or nn.Embedding would fill it with random numbers
        self.embedding = nn.Embedding(text.vocab_size, text.width, _weight=table)
        self.layers = nn.ModuleList(Block(text, layer) for layer in range(text.n_layers))
        self.norm = RMSNorm(text.width, text.norm_eps)
        self.head = nn.Linear(text.width, text.vocab_size, bias=False)
        self.vision = None if config.vision is None else VisionTower(config.vision)
        self.projector = (
            None if config.vision is None else nn.Linear(config.vision.output_width, text.width, bias=False)
        )

    def embed_tiles(self, tiles: Tensor) -> Tensor:
        """Returns one row per patch token, tile after tile: [I 3 S S] in -1..1 -> [I*tokens_per_tile D].

        Raises PromptError when the model has no vision tower.
        """
        if self.vision is None or self.projector is None:
            raise PromptError(
                "tiles: this model has no vision tower; remove the images or load a multimodal checkpoint"
            )
        features: Tensor = self.projector(self.vision(tiles)).flatten(0, 1)  # M D
        return features

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        store: KVStore,
        features: Tensor | None = None,
        deltas: Deltas | None = None,
    ) -> Hidden:
        """Returns the normed states behind the last layer and the routes.

        ids and positions int64 [T]; positions are those within each token's own sequence. features [M D], as
        `embed_tiles` makes them, replace the patch tokens of this batch in order; None leaves these embeddings alone.
        `deltas` correct the maps of all layers, row by row.
        """
        x = self.embed(ids, features)  # T D
        x, routes = self.run_layers(x, positions, store, deltas)
        return Hidden(self.norm(x), routes)

    def embed(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """Returns what the first layer reads, [T D]: the ids' embeddings, patch tokens replaced as `hidden` says."""
        sizes(ids, "T")
        x: Tensor = self.embedding(ids)  # T D
        if features is not None and self.config.patch_id is not None:
            x = fuse(x, ids.eq(self.config.patch_id), features)
        return x

    def run_layers(
        self, x: Tensor, positions: Tensor, store: KVStore, deltas: Deltas | None = None
    ) -> tuple[Tensor, tuple[Route, ...]]:
        """Returns what x [T D] becomes in all layers, before the last norm, and the routes."""
        (T, _) = sizes(x, "T D")
        sizes(positions, f"{T}")
        text = self.config.text
        rotation = text_rotation(positions, text_frequencies(text).to(x.device))
        scale = text.query_temperature
        temperature = None if scale is None else query_temperature(positions, scale)
        routes = []
        for layer in self.layers:
            x, route = layer(x, rotation, temperature, store, deltas)
            if route is not None:
                routes.append(route)
        return x, tuple(routes)

    def logits(self, states: Tensor, deltas: Deltas | None = None) -> Tensor:
        """Returns float32 logits [R V] of states [R D], whose own corrections `deltas` are."""
        return through(self.head, states, deltas).float()

    def forward(self, ids: Tensor, positions: Tensor, store: KVStore, features: Tensor | None = None) -> Tensor:
        """Returns float32 logits [T V] for every token of the batch; see `hidden` for the inputs."""
        return self.logits(self.hidden(ids, positions, store, features).states)


def set_parameter(model: Llama, name: str, tensor: Tensor) -> None:
    """Puts a parameter where the meta tensor of that name was. Only floats can have gradients."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


@torch.no_grad()
def initialise(model: Llama, generator: torch.Generator) -> None:
    """Fills all parameters of `model` with the start values of a training, from `generator` alone.

    Matrices keep the variance of what they read (std 1/sqrt(fan in)); those that write into the residual stream are
    smaller by sqrt(2 * layers), so that its variance does not grow with depth; gains are 1 and biases 0. A token's
    embedding, which is looked up and not multiplied, has the variance of the stream itself, 1: at 1/width it would
    drown in what the layers and the picture features write beside it (decision 021).
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(start_value(name, parameter.shape, model.config, generator))


def start_value(name: str, shape: torch.Size, config: LlamaConfig, generator: torch.Generator) -> Tensor:
    """Returns what `initialise` gives one parameter, on the CPU: the same, if all before it have been asked for."""
    if len(shape) < 2 and not name.endswith("class_token"):
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    return torch.randn(shape, generator=generator) * start_std(name, shape, config)


def start_std(name: str, shape: torch.Size, config: LlamaConfig) -> float:
    """Returns the standard deviation of the random numbers that a parameter begins with."""
    std = 1.0 if name == "embedding.weight" else shape[-1] ** -0.5
    return std * (2 * depth_of(name, config)) ** -0.5 if writes_to_stream(name) else std


def writes_to_stream(name: str) -> bool:
    """Whether a parameter makes what its layer, of decoder or tower, adds to the residual stream."""
    return name.endswith(("attention.output.weight", "down", "down.weight")) and "adapter" not in name


def depth_of(name: str, config: LlamaConfig) -> int:
    """Returns how many layers there are where a parameter stands: in the decoder or in the vision tower."""
    if name.startswith("vision.layers.") and config.vision is not None:
        return config.vision.n_layers
    return config.text.n_layers
