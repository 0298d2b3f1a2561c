"""Attention for training equals the definition of the mask, in values and gradients."""

import pytest
import torch

from puna.model.mask import Packed
from puna.train.banded import Banded
from tests.reference.tiny import tiny_config


@pytest.mark.parametrize("row_len", [8, 16, 40, 21])  # one block, two, many; 21 is no multiple of the chunk
@pytest.mark.parametrize("layer", [0, 3])  # chunked, global
def test_banded_attention_equals_packed_attention(row_len: int, layer: int) -> None:
    config = tiny_config().text
    torch.manual_seed(row_len + layer)
    rows = 2
    lengths = [row_len // 3, row_len // 2]
    lengths.append(row_len - sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(rows, -1).contiguous()
    documents = torch.repeat_interleave(torch.tensor([0, 1, -1]), torch.tensor(lengths)).expand(rows, -1).contiguous()
    shapes = [
        (rows * row_len, heads, config.head_dim) for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    ]
    upstream = torch.randn(shapes[0])
    qkv = [torch.randn(shape, requires_grad=True) for shape in shapes]
    results = []
    for kind in (Packed, Banded):
        out = kind(config, positions, documents).attend(layer, *qkv)
        results.append([out.detach(), *torch.autograd.grad(out, qkv, upstream)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)  # float32, another order of sums
