"""Eight bits as a small float (e4m3), one scale a row, chosen to leave the smallest squared error.

A float has the same relative error in every octave, so only the place of the row's maximum within one matters: of four
places from absmax/448 on the best is taken, which saves 5 to 10 % of the squared error of absmax/448 alone. Scales
are numbers of bfloat16, so that files in that dtype hold them exactly.
Source: OCP "8-bit floating point specification" (e4m3: largest 448, three bits behind the leading one, steps of 2^-9
near zero); llama-models `quantize_impls.py` (rowwise absmax/448).
"""

import torch
from torch import Tensor

from puna.kernels.formats import Fp8, Small, shape
from puna.quant.strips import device_of, strips

LIMIT = 448.0
PLACES = tuple(2 ** (i / 4) for i in range(4))
_MANTISSA = 20  # bits of a float32 below the three that e4m3 keeps
_NEAR_ZERO = 1.5 * 2.0 ** (23 - 9)  # added and taken away again, leaves multiples of 2^-9


def quantize(weight: Tensor | Small) -> Fp8:
    """Returns `weight` [.. out in] of any format as Fp8, on its device. A row of zeros has scale 0."""
    *leading, width = shape(weight)
    codes = torch.empty(*leading, width, dtype=torch.float8_e4m3fn, device=device_of(weight))
    scales = torch.empty(*leading, 1, dtype=torch.float32, device=device_of(weight))
    flat_codes, flat_scales = codes.view(-1, width), scales.view(-1, 1)
    for rows, numbers in strips(weight):
        plain = numbers.abs().amax(-1, keepdim=True) / LIMIT  # rows 1
        tried = [(plain * place).bfloat16().float() for place in PLACES]
        errors = [_error(scaled(numbers, scale)) * scale[:, 0] for scale in tried]  # rows
        best = torch.stack(errors).argmin(0)  # rows
        scale = torch.stack(tried).gather(0, best[None, :, None])[0]  # rows 1
        flat_codes[rows] = scaled(numbers, scale).to(torch.float8_e4m3fn)
        flat_scales[rows] = scale
    return Fp8(codes, scales)


def scaled(numbers: Tensor, scale: Tensor) -> Tensor:
    """Returns the numbers [rows in] in units of their scale [rows 1], within what e4m3 can hold."""
    per_scale = torch.where(scale > torch.finfo(torch.float32).tiny, 1 / scale, 0.0)
    return (numbers * per_scale).clamp_(-LIMIT, LIMIT)


def nearest(x: Tensor) -> Tensor:
    """Returns float32 numbers rounded to e4m3, to even: what a cast there and back gives, faster than torch's on CPUs.

    x float32 within -448..448. The cast alone stores; this only weighs.
    """
    bits = x.view(torch.int32)
    half = ((bits >> _MANTISSA) & 1) + (1 << (_MANTISSA - 1)) - 1
    rounded = ((bits + half) & -(1 << _MANTISSA)).view(torch.float32)
    return torch.where(x.abs() < 2.0**-6, (x + _NEAR_ZERO) - _NEAR_ZERO, rounded)


def _error(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(nearest(x).sub_(x), dim=-1)
    return norm
