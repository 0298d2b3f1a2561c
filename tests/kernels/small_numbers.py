"""Random weights in the formats of `formats`, for tests of products: any codes, scales of either sign."""

import torch

from puna.kernels.formats import GROUP, Fp8, Int4, Int8, Small


def small(
    kind: type[Small], n_out: int, n_in: int, leading: tuple[int, ...] = (), *, device: torch.device | str = "cpu"
) -> Small:
    """Returns a random weight [.. out in] of numbers around 1, for sums that float32 holds to 1e-5."""
    shape = (*leading, n_out, n_in)
    if kind is Int4:
        codes = torch.randint(0, 256, (*shape[:-1], n_in // 2), dtype=torch.uint8)
        scales = (torch.randn(*shape[:-1], n_in // GROUP) / 8).bfloat16()
        return Int4(codes.to(device), scales.to(device))
    scales = torch.rand(*shape[:-1], 1) / 64 + 1e-3
    if kind is Int8:
        return Int8(torch.randint(-127, 128, shape, dtype=torch.int8).to(device), scales.to(device))
    return Fp8((torch.randn(shape) * 100).clamp(-448, 448).to(torch.float8_e4m3fn).to(device), scales.to(device))
