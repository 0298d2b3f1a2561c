"""What is measured without memory is what a forward pass really keeps."""

import pytest
import torch

from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Block
from puna.train.activations import Kept, kept
from puna.train.banded import Banded
from puna.train.recipe import BatchRecipe, ParallelRecipe
from tests.train.test_passes import shaped

BATCH = BatchRecipe(rows=2, row_len=32, tiles=1, window=8)


def really_kept(layer: int, dtype: torch.dtype) -> int:
    text = shaped(maverick=True).text
    block = Block(text, layer).to(dtype)
    positions = torch.arange(BATCH.row_len).repeat(BATCH.rows, 1)
    store = Banded(text, positions, torch.zeros_like(positions))
    rotation = text_rotation(positions.flatten(), text_frequencies(text))
    assert text.query_temperature is not None
    temperature = query_temperature(positions.flatten(), text.query_temperature)
    x = torch.randn(positions.numel(), text.width, dtype=dtype, requires_grad=True)
    return kept(lambda: block(x, rotation, temperature, store), block)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", [0, 1, 3], ids=["chunked, dense", "chunked, routed", "global, routed"])
def test_a_layer_keeps_what_was_measured(layer: int, dtype: torch.dtype) -> None:
    measured = Kept(shaped(maverick=True), ParallelRecipe(), BATCH, dtype, chunk=16).layer(layer)
    assert measured == pytest.approx(really_kept(layer, dtype), rel=0.05)


def test_ranks_that_share_matrices_keep_less_and_so_do_ranks_that_share_rows() -> None:
    config = shaped(maverick=True)

    def keeps(layout: ParallelRecipe) -> Kept:
        return Kept(config, layout, BATCH, torch.bfloat16, chunk=16)

    alone, tensor, context = (keeps(ParallelRecipe(**each)) for each in ({}, {"tensor": 2}, {"context": 2}))
    for layer in range(4):
        assert alone.layer(layer) / 2 < tensor.layer(layer) < alone.layer(layer)
    assert context.state * 2 == alone.state == tensor.state
    assert alone.tower == tensor.tower > 0 and tensor.head < alone.head
