"""What a formula says a forward pass keeps is what the model's own code keeps: measured without memory, and with."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from puna.config import LlamaConfig, TextConfig
from puna.kernels import training
from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Block
from puna.plan.activations import Kept, Shape, has_kernels
from puna.plan.shares import Training
from puna.presets import MAVERICK, SCOUT
from puna.train.banded import Banded
from puna.train.recipe import BatchRecipe, ParallelRecipe
from tests.reference import activations as measure
from tests.train.test_passes import shaped

BATCH = BatchRecipe(rows=2, row_len=32, tiles=1, window=8)
DIVISIONS: list[dict[str, Any]] = [{}, {"tensor": 2}, {"context": 2}]


def estimated(config: LlamaConfig, division: dict[str, Any], batch: BatchRecipe, dtype: torch.dtype) -> Kept:
    shape = Shape(rows=batch.rows, row_len=batch.row_len, tiles=batch.tiles, itemsize=dtype.itemsize, chunk=16)
    return Kept(config, Training(**division), shape)


def really_kept(layer: int, dtype: torch.dtype, text: TextConfig, row_len: int = BATCH.row_len) -> int:
    block = Block(text, layer).to(dtype)
    positions = torch.arange(row_len).repeat(BATCH.rows, 1)
    store = Banded(text, positions, torch.zeros_like(positions))
    rotation = text_rotation(positions.flatten(), text_frequencies(text))
    assert text.query_temperature is not None
    temperature = query_temperature(positions.flatten(), text.query_temperature)
    x = torch.randn(positions.numel(), text.width, dtype=dtype, requires_grad=True)
    return measure.kept(lambda: block(x, rotation, temperature, store), block)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", [0, 1, 3], ids=["chunked, dense", "chunked, routed", "global, routed"])
def test_a_layer_keeps_what_was_measured(layer: int, dtype: torch.dtype) -> None:
    """Tiny layers: angles, scores and places of rows, a few bytes a token, are left out of the formula."""
    formula = estimated(shaped(maverick=True), {}, BATCH, dtype).layer(layer)
    measured = measure.Kept(shaped(maverick=True), ParallelRecipe(), BATCH, dtype).layer(layer)
    assert measured == pytest.approx(really_kept(layer, dtype, shaped(maverick=True).text), rel=0.05)
    assert formula == pytest.approx(measured, rel=0.08)


@pytest.mark.skipif(not training.available(), reason="needs the C++ kernels")
@pytest.mark.parametrize("layer", [0, 1, 3], ids=["chunked, dense", "chunked, routed", "global, routed"])
def test_a_layer_of_the_kernels_keeps_what_they_keep(layer: int) -> None:
    """Angles and places of rows, some hundred bytes a token, are left out of the formula; here that is four in a
    hundred."""
    text = replace(shaped(maverick=True).text, width=64, expert_width=96, dense_width=128, head_dim=16)
    config = replace(shaped(maverick=True), text=text)
    assert has_kernels(text)
    shape = Shape(rows=2, row_len=256, kernels=True)
    formula, real = Kept(config, Training(), shape).layer(layer), really_kept(layer, torch.bfloat16, text, row_len=256)
    assert formula == pytest.approx(real, rel=0.08)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("division", DIVISIONS, ids=str)
@pytest.mark.parametrize("config", [SCOUT, pytest.param(MAVERICK, marks=pytest.mark.slow)], ids=["scout", "maverick"])
def test_the_released_models_keep_what_is_measured_on_their_code(
    config: LlamaConfig, division: dict[str, Any], dtype: torch.dtype
) -> None:
    config = replace(config, vision=None)  # the tower has a test of its own
    batch = replace(BATCH, row_len=16_384, tiles=0)
    formula, measured = (
        estimated(config, division, batch, dtype),
        measure.Kept(config, ParallelRecipe(**division), batch, dtype),
    )
    for layer in (0, 1, 3):
        assert formula.layer(layer) == pytest.approx(measured.layer(layer), rel=0.002)


def test_the_tower_keeps_what_is_measured_on_its_code() -> None:
    vision = SCOUT.vision
    assert vision is not None
    config = replace(SCOUT, vision=replace(vision, n_layers=3))
    batch = replace(BATCH, tiles=2)
    for dtype in (torch.bfloat16, torch.float32):
        measured = measure.Kept(config, ParallelRecipe(), batch, dtype).tower
        assert estimated(config, {}, batch, dtype).tower == pytest.approx(measured, rel=0.02)


def test_ranks_that_share_matrices_keep_less_and_so_do_ranks_that_share_rows() -> None:
    alone, tensor, context = (estimated(shaped(maverick=True), each, BATCH, torch.bfloat16) for each in DIVISIONS)
    for layer in range(4):
        assert alone.layer(layer) / 2 < tensor.layer(layer) < alone.layer(layer)
    assert context.state * 2 == alone.state == tensor.state
    assert alone.tower == tensor.tower > 0 and tensor.head < alone.head


def test_attention_that_keeps_no_scores_keeps_less() -> None:
    shape = Shape(rows=1, row_len=8192)
    with_scores, fused = (Kept(SCOUT, Training(), replace(shape, scores=each)) for each in (True, False))
    assert fused.layer(3) < with_scores.layer(3) / 5
