"""Products with small numbers equal products with the numbers written out."""

import pytest
import torch

from puna.kernels import experts as dense
from puna.kernels import quantized
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, pack


def _small(kind: str, *rows: int, width: int) -> Small:
    if kind == "int4":
        return Int4(pack(torch.randint(-8, 8, (*rows, width))), 0.02 * torch.randn(*rows, width // 32).bfloat16())
    scales = 0.002 * torch.rand(*rows, 1)
    if kind == "int8":
        return Int8(torch.randint(-127, 128, (*rows, width), dtype=torch.int8), scales)
    return Fp8((100 * torch.randn(*rows, width)).to(torch.float8_e4m3fn), scales)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_linear_equals_the_product_with_the_numbers_written_out(kind: str) -> None:
    weight, x = _small(kind, 24, width=64), torch.randn(2, 5, 64)
    assert torch.equal(quantized.linear(x, weight), x @ dequantize(weight, torch.float32).T)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("k", [1, 2])
def test_routed_experts_equal_those_of_the_numbers_written_out(kind: str, k: int) -> None:
    gate_up, down = _small(kind, 4, 64, width=64), _small(kind, 4, 64, width=32)
    x, scores = torch.randn(7, 64), torch.rand(7, k)
    experts = torch.rand(7, 4).topk(k).indices
    wide = (dequantize(gate_up, torch.float32), dequantize(down, torch.float32))
    expected = dense.routed_experts(x, scores, experts, *wide)
    # The same products in another order of rows: float32 rounding of sums over 64 numbers.
    torch.testing.assert_close(quantized.routed_experts(x, scores, experts, gate_up, down), expected)


def test_plain_tensors_pass_through() -> None:
    weight, x = torch.randn(8, 16), torch.randn(3, 16)
    assert torch.equal(quantized.linear(x, weight), x @ weight.T)
