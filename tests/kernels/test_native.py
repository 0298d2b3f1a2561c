"""The C++ products against their plain twins, and what a row's result may depend on."""

from typing import cast

import pytest
import torch
from torch import Tensor

from puna.kernels import native
from puna.kernels.experts import routed_experts
from puna.kernels.formats import GROUP, Int4, Int8, dequantize, pack

pytestmark = pytest.mark.skipif(not native.available(), reason="the C++ kernels are not built for this processor")

KINDS = ("fp32", "bf16", "int8", "int4")
# Of activations that are rounded to bfloat16 or to int8 in groups: half a step of 8 or 7 bits, averaged over a sum.
TOLERANCE = {"fp32": 1e-6, "bf16": 3e-3, "int8": 1e-2, "int4": 1e-2}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, *shape: int) -> Tensor | Int4 | Int8:
    """A weight in a format; its scales differ from row to row and group to group."""
    plain = random(*shape, seed=1)
    if kind == "fp32":
        return plain
    if kind == "bf16":
        return plain.bfloat16()
    if kind == "int8":
        codes = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(2)).to(torch.int8)
        return Int8(codes, plain[..., :1] / 100)
    codes = pack(torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(3)))
    return Int4(codes, (plain[..., ::GROUP] / 8).bfloat16().contiguous())


def sizes_of(kind: str) -> list[tuple[int, int]]:
    """Outputs and inputs that do and do not fill a block, a panel and a group; int4 has whole groups only."""
    return [(64, 64), (16, 32), (1, 32), (200, 96), (77, 2080)] + ([] if kind == "int4" else [(33, 50), (5, 1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [1, 2, 5, 6, 7, 8, 9, 40])
def test_linear_equals_the_product_with_the_written_out_weight(kind: str, n_rows: int) -> None:
    for n_out, n_in in sizes_of(kind):
        weight = weight_of(kind, n_out, n_in)
        x = random(n_rows, n_in)
        plain = dequantize(weight, torch.float32)
        expected = x @ plain.T
        got = native.linear(x, native.pack(weight))
        assert got.shape == expected.shape
        # Errors add up like the parts of a sum, and the sum itself may be small beside them.
        parts = (x.square() @ plain.square().T).sqrt()
        assert (got - expected).norm() <= TOLERANCE[kind] * parts.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_any_company(kind: str) -> None:
    weight = native.pack(weight_of(kind, 100, 4128))
    x = random(37, 4128)
    together = native.linear(x, weight)
    for first, last in ((0, 1), (3, 5), (10, 17), (36, 37)):
        assert torch.equal(native.linear(x[first:last], weight), together[first:last])


@pytest.mark.parametrize("kind", KINDS)
def test_routed_experts_equal_the_plain_ones(kind: str) -> None:
    E, D, F = 4, 64, 32
    gate_up, down = weight_of(kind, E, 2 * F, D), weight_of(kind, E, D, F)
    x = random(9, D)
    experts = torch.tensor([[0, 2], [2, 0], [2, 3], [0, 3], [3, 2], [2, 0], [0, 2], [3, 0], [2, 3]])  # nobody takes 1
    scores = random(9, 2).sigmoid()
    expected = routed_experts(x, scores, experts, dequantize(gate_up, torch.float32), dequantize(down, torch.float32))
    got = native.routed_experts(x, scores, experts, native.pack(gate_up), native.pack(down))
    assert (got - expected).norm() <= 3 * TOLERANCE[kind] * expected.norm()


def test_linear_keeps_leading_axes_and_dtype() -> None:
    weight = native.pack(random(48, 32))
    x = random(2, 3, 32).bfloat16()
    got = native.linear(x, weight)
    assert got.shape == (2, 3, 48)
    assert got.dtype == torch.bfloat16
    assert native.linear(x[:0], weight).shape == (0, 3, 48)


def test_int8_scales_are_taken_row_by_row() -> None:
    codes = torch.full((17, 32), 127, dtype=torch.int8)
    scales = torch.arange(1.0, 18.0)[:, None]
    got = native.linear(torch.ones(1, 32), native.pack(Int8(codes, scales)))
    assert torch.allclose(got[0], 127 * 32 * cast(Tensor, scales)[:, 0], rtol=1e-6)
