"""The C++ products against their plain twins, and what a row's result may depend on."""

from typing import cast

import pytest
import torch
from torch import Tensor

from puna.kernels import native
from puna.kernels.experts import routed_experts
from puna.kernels.formats import GROUP, Int4, Int8, dequantize, pack

pytestmark = pytest.mark.skipif(not native.available(), reason="the C++ kernels are not built for this processor")

KINDS = ("fp32", "bf16", "int8", "int6", "int4")
TOLERANCE = 1e-5
"""Of float32 sums of 2080 parts one after the other, relative to the root of the sum of squared parts."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, *shape: int) -> Tensor | Int4 | Int8:
    """A weight in a format; its scales differ from row to row and group to group."""
    plain = random(*shape, seed=1)
    if kind == "fp32":
        return plain
    if kind == "bf16":
        return plain.bfloat16()
    if kind in ("int8", "int6"):
        least, most = (-127, 127) if kind == "int8" else (-32, 31)
        codes = torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(2)).to(torch.int8)
        return Int8(codes, plain[..., :1] / most)
    codes = pack(torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(3)))
    return Int4(codes, (plain[..., ::GROUP] / 8).bfloat16().contiguous())


def sizes_of(kind: str) -> list[tuple[int, int]]:
    """Outputs and inputs that do and do not fill a block, a panel and a group; int4 has whole groups only."""
    return [(64, 64), (16, 32), (1, 32), (200, 96), (77, 2080)] + ([] if kind == "int4" else [(33, 50), (5, 1)])


def rounded(x: Tensor, kind: str) -> Tensor:
    """What a kernel of this kind makes of activations: bfloat16, or int8 with a scale for each group of inputs."""
    if kind in ("fp32", "bf16"):
        return x if kind == "fp32" else x.bfloat16().float()
    n_in = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -n_in % GROUP)).unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scales.clamp(min=1e-30)).round() * scales).flatten(-2)[..., :n_in]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [1, 2, 5, 6, 7, 8, 9, 40])
def test_linear_equals_the_product_of_rounded_activations_and_written_out_weights(kind: str, n_rows: int) -> None:
    for n_out, n_in in sizes_of(kind):
        weight = weight_of(kind, n_out, n_in)
        x, plain = random(n_rows, n_in), dequantize(weight, torch.float32)
        expected = rounded(x, kind).double() @ plain.double().T
        parts = (x.square() @ plain.square().T).sqrt()  # a sum itself may be small beside them
        got = native.linear(x, native.pack(weight))
        assert got.shape == expected.shape
        assert ((got - expected).abs() <= TOLERANCE * parts).all()


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
    # Three products of rounded activations: half a step of 8 or 7 bits each.
    assert (got - expected).norm() <= (1e-6 if kind == "fp32" else 0.02) * expected.norm()


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
