"""Int8: half a step at most between a number and its code."""

import torch

from puna.kernels.formats import Int4, dequantize, pack
from puna.quant import int8


def test_every_number_is_within_half_a_step() -> None:
    w = torch.randn(2, 16, 48)
    small = int8.quantize(w)
    off = (dequantize(small, torch.float32) - w).abs()
    assert (off <= 0.5001 * small.scales).all()  # float32 rounding of the quotient
    assert torch.equal(small.codes.abs().amax(-1), torch.full((2, 16), 127))


def test_zeros_stay_zeros() -> None:
    assert not dequantize(int8.quantize(torch.zeros(3, 8)), torch.float32).any()


def test_four_bits_are_read_as_the_numbers_they_mean() -> None:
    w = Int4(pack(torch.randint(-8, 8, (4, 64))), torch.rand(4, 2).bfloat16())
    wide = int8.quantize(dequantize(w, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(int8.quantize(w), wide, strict=True))
