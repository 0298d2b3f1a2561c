"""Fp8: at least as good as absmax/448, and its rounding is the cast's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.kernels.formats import dequantize
from puna.quant import fp8


def test_rounding_equals_a_cast_there_and_back() -> None:
    x = torch.linspace(-448, 448, 200_001)
    x = torch.cat([x, x * 1e-2, x * 1e-4, x * 1e-6, torch.arange(-64, 65) * 2.0**-10])
    assert torch.equal(fp8.nearest(x), x.to(torch.float8_e4m3fn).float())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_no_row_fares_worse_than_under_absmax_over_448(seed: int, size: float) -> None:
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * size
    plain = (w.abs().amax(-1, keepdim=True) / 448).bfloat16().float()
    theirs = (w / plain).clamp(-448, 448).to(torch.float8_e4m3fn).float() * plain
    ours = dequantize(fp8.quantize(w), torch.float32)
    lost = [((numbers - w) / size).square().sum(-1) for numbers in (ours, theirs)]
    assert (lost[0] <= lost[1] * (1 + 1e-5)).all()  # float32 sums decide between as good as equal scales


def test_zeros_stay_zeros_and_the_largest_number_does_not_become_none() -> None:
    assert not dequantize(fp8.quantize(torch.zeros(3, 8)), torch.float32).any()
    assert dequantize(fp8.quantize(torch.full((1, 8), 3.0e38)), torch.float32).isfinite().all()
