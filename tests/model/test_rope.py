"""Rotations and temperature, against complex arithmetic and exact arithmetic."""

import math
from dataclasses import replace
from decimal import Decimal, getcontext

import pytest
import torch

from puna.config import QueryTemperature, RopeScaling
from puna.model.rope import query_temperature, rotate, text_frequencies, text_rotation, vision_rotation
from puna.presets import CRIA, SCOUT


def test_rotation_multiplies_adjacent_channels_as_complex_numbers() -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(5, 3, 8), torch.tensor([0, 1, 7, 100, 5000])
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    turned = torch.view_as_complex(x.reshape(5, 3, 4, 2)) * torch.polar(
        torch.ones(5, 1, 4), positions[:, None, None] * frequencies
    )
    torch.testing.assert_close(
        rotate(x, text_rotation(positions, frequencies)), torch.view_as_real(turned).flatten(2), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("position", [8191, 1_048_575, 10_485_759])
def test_angles_keep_their_precision_to_ten_million_positions(position: int) -> None:
    getcontext().prec = 50
    frequencies = text_frequencies(SCOUT.text)
    rotation = text_rotation(torch.tensor([position]), frequencies)
    tau = Decimal("6.28318530717958647692528676655900576839433879875021")
    for pair, frequency in enumerate(frequencies.tolist()):
        angle = Decimal(position) * Decimal(frequency)
        assert abs(rotation.cos[0, 0, pair].item() - math.cos(float(angle % tau))) < 1e-6  # float32 keeps 7 digits


def test_equal_scaling_factors_divide_only_long_wavelengths() -> None:
    plain = text_frequencies(replace(SCOUT.text, rope_scaling=None))
    scaled = text_frequencies(SCOUT.text)
    is_long = 2 * math.pi / plain > 8192
    assert is_long.any() and not is_long.all()
    assert torch.equal(scaled, torch.where(is_long, plain / 16, plain))


def test_unequal_scaling_factors_blend_between_the_two_wavelengths() -> None:
    scaling = RopeScaling(factor=8, low_factor=1, high_factor=4, original_context=8192)
    plain = text_frequencies(replace(SCOUT.text, rope_scaling=None))
    scaled = text_frequencies(replace(SCOUT.text, rope_scaling=scaling))
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all() and between.any()


def test_temperature_is_exactly_one_until_the_first_step() -> None:
    factor = query_temperature(torch.tensor([0, 8190, 8191, 131_071]), QueryTemperature(floor_len=8192, scale=0.1))
    assert factor[:2].flatten().tolist() == [1.0, 1.0]
    assert factor[2].item() == pytest.approx(1 + 0.1 * math.log(2), abs=1e-7)
    assert factor[3].item() == pytest.approx(1 + 0.1 * math.log(17), abs=1e-7)


def test_the_class_token_of_a_tile_is_not_turned() -> None:
    assert CRIA.vision is not None
    rotation = vision_rotation(CRIA.vision)
    assert rotation.cos.shape == (65, 1, 16)
    assert torch.equal(rotation.cos[-1], torch.ones(1, 16)) and torch.equal(rotation.sin[-1], torch.zeros(1, 16))


def test_patches_turn_with_column_then_row() -> None:
    assert CRIA.vision is not None
    rotation = vision_rotation(CRIA.vision)
    patch = 3 * 8 + 5  # row 3, column 5 of a grid of 8
    assert rotation.sin[patch, 0, 0].item() == pytest.approx(math.sin(6), abs=1e-6)
    assert rotation.sin[patch, 0, 8].item() == pytest.approx(math.sin(4), abs=1e-6)
