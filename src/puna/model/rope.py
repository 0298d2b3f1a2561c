"""Positions: rotation of adjacent channel pairs, in one dimension for text and in two for the vision tower.

Angles are products of an integer position and a float32 frequency, taken in float64: in float32 the product is off
by up to half a radian near position 10 million, and Scout is specified to 10 million (docs/decisions/003).

Source: llama-models `models/llama4/model.py` (text), `models/llama4/vision/encoder.py` (vision).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from puna.config import QueryTemperature, RopeScaling, TextConfig, VisionConfig


class Rotation(NamedTuple):
    """Cosines and sines of one angle per token and channel pair, float32 [... 1 H/2]: the 1 stands for all heads."""

    cos: Tensor
    sin: Tensor


def text_frequencies(config: TextConfig) -> Tensor:
    """Returns the angle per position of each channel pair, float32 [H/2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    return frequencies if config.rope_scaling is None else _stretch(frequencies, config.rope_scaling)


def text_rotation(positions: Tensor, frequencies: Tensor) -> Rotation:
    """Returns the rotation of each token. positions int64 [T], frequencies float32 [H/2]."""
    return _rotation(positions[:, None, None].double() * frequencies.double())  # T 1 H/2


def vision_rotation(config: VisionConfig) -> Rotation:
    """Returns the rotation of a tile's patches in row-major order; the class token, last, is not turned.

    The first half of the pairs turns with column + 1, the second half with row + 1. Result [P+1 1 H/2].
    """
    width = config.width // config.n_heads // 2  # channels for one direction
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)  # H/4
    patches = torch.arange(config.n_patches)
    columns, rows = patches % config.grid + 1, patches // config.grid + 1
    angles = torch.cat([columns[:, None] * frequencies, rows[:, None] * frequencies], dim=-1)  # P H/2
    return _rotation(torch.cat([angles, angles.new_zeros(1, width)])[:, None].double())  # P+1 1 H/2


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Returns x with each pair of adjacent channels turned, computed in float32, in the dtype of x. x [... N H]."""
    even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)  # ... N H/2
    turned = torch.stack([even * rotation.cos - odd * rotation.sin, even * rotation.sin + odd * rotation.cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)  # ... N H


def query_temperature(positions: Tensor, temperature: QueryTemperature) -> Tensor:
    """Returns the factor on the queries of NoPE layers, float32 [T 1 1]; exactly 1 before position floor_len - 1.

    Source: arXiv 2501.19399; llama-models `models/llama4/model.py`.
    """
    steps = torch.div(positions + 1, temperature.floor_len, rounding_mode="floor").double()
    return (1 + temperature.scale * torch.log1p(steps)).float()[:, None, None]  # T 1 1


def _rotation(angles: Tensor) -> Rotation:
    return Rotation(angles.cos().float(), angles.sin().float())


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """The "llama3" rule; with equal factors there is no band to blend (and nothing to divide by)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context / wavelengths  # full turns within the original context
    if scaling.high_factor == scaling.low_factor:
        return torch.where(turns < scaling.low_factor, frequencies / scaling.factor, frequencies)
    keep = ((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies
