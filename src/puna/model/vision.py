"""The vision tower: square tiles in, a few vectors per tile out, as wide as the adapter makes them.

A tile is cut into patches; a class token goes last; all patches of one tile see each other and no other tile.
Source: llama-models `models/llama4/vision/encoder.py` and `embedding.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.config import VisionConfig
from puna.model.rope import Rotation, rotate, vision_rotation
from puna.shapes import sizes


class VisionAttention(nn.Module):
    """Bidirectional attention within one tile, with biases and a two-dimensional rotation."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x [I P+1 W]. Result [I P+1 W]."""
        q, k, v = (project(x).unflatten(-1, (self.n_heads, -1)) for project in (self.query, self.key, self.value))
        q, k = rotate(q, rotation), rotate(k, rotation)  # I P+1 N H
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # I N P+1 H
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))  # I P+1 W
        return out


class VisionMLP(nn.Module):
    """down(gelu(up(x))) with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class VisionBlock(nn.Module):
    """One pre-norm layer of the tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = VisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Adapter(nn.Module):
    """Two linear maps after pixel shuffle, a GELU behind each: also behind the second."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.shuffled_width, config.adapter_width, bias=False)
        self.down = nn.Linear(config.adapter_width, config.output_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.down(F.gelu(self.up(x))))


class VisionTower(nn.Module):
    """Tiles [I 3 S S], normalised to -1..1, to features [I tokens_per_tile output_width]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Linear(3 * config.patch_size**2, config.width, bias=False)
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Parameter(torch.empty(config.n_patches + 1, config.width))
        self.norm_before = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(VisionBlock(config) for _ in range(config.n_layers))
        self.norm_after = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.adapter = Adapter(config)

    def forward(self, tiles: Tensor) -> Tensor:
        I, _, _, _ = sizes(tiles, f"I 3 {self.config.tile_size} {self.config.tile_size}")
        x = self.patch(cut_patches(tiles, self.config.patch_size).to(self.class_token.dtype))  # I P W
        x = torch.cat([x, self.class_token.expand(I, 1, -1)], dim=1) + self.positions  # I P+1 W
        rotation = Rotation(*(part.to(x.device) for part in vision_rotation(self.config)))
        x = self.norm_before(x)
        for layer in self.layers:
            x = layer(x, rotation)
        x = self.norm_after(x)[:, :-1]  # I P W
        features: Tensor = self.adapter(pixel_shuffle(x, self.config.shuffle))
        return features


def cut_patches(tiles: Tensor, patch_size: int) -> Tensor:
    """Returns the patches of each tile in row-major order, channels first within a patch. [I 3 S S] -> [I P 3*p*p]."""
    grid = tiles.shape[-1] // patch_size
    cells = torch.unflatten(
        torch.unflatten(tiles, -1, (grid, patch_size)), -3, (grid, patch_size)
    )  # I 3 rows p columns p
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # I P 3*p*p


def pixel_shuffle(x: Tensor, side: int) -> Tensor:
    """Returns each square of side x side neighbouring patches as one wider token. [I P W] -> [I P/side^2 W*side^2]."""
    n_squares = round(x.shape[1] ** 0.5) // side
    cells = torch.unflatten(x, 1, (n_squares, side, n_squares, side))  # I rows side columns side W
    return cells.transpose(2, 3).flatten(3).flatten(1, 2)  # I P/side^2 W*side^2
