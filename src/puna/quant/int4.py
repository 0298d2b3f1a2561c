"""Four bits a weight: for each group of 32 the scale that leaves the smallest squared error.

In: a weight of any format. Out: Int4. The range of codes, -8..7, is lopsided: a scale of the other sign turns it round,
and a scale below absmax/8 clips one number to place thirty-one others better. Both are searched
(docs/decisions/011). Each group does at least as well as with Meta's rule (absmax/8, which always clips a positive
extreme) and with llama.cpp's Q4_0 (the signed extreme over -8), both with scales rounded to bfloat16 as ours are.
On a processor with kernels of ours they do the same search, seven times as fast (`native/quantize.h`).
Source: llama-models `quantize_impls.py` (int4); ggml `ggml-quants.c` (quantize_row_q4_0_ref, make_qx_quants).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from puna.errors import ConfigError
from puna.kernels import native
from puna.kernels.formats import GROUP, Int4, Small, pack, shape
from puna.quant.strips import device_of, strips

LOWEST, HIGHEST = -8, 7
QUICK_STRIP = 1 << 20
"""Numbers that the kernels take at once: few meetings of threads, and little memory beside the weight."""
TINY = torch.finfo(torch.float32).tiny
REACHES = tuple(7 + 0.3 * i for i in range(9))
"""Where the extreme of a group may land, in steps below 0; beyond 8.5 it is clipped. Of 224 reaches on both sides the
best leave 0.885 of the squared error of Q4_0 on Gaussian weights, these nine 0.887."""


def quantize(weight: Tensor | Small, importance: Tensor | None = None) -> Int4:
    """Returns `weight` [.. out in] as Int4, on its device.

    importance float32 [in], none negative: what a squared error in each column costs, such as the mean square of the
    activations that meet it; None counts all alike. Raises ConfigError when `in` is not a multiple of 32.
    """
    is_quick = importance is None and device_of(weight).type == "cpu" and native.available()
    return _quantize(weight, importance, _quick_strip if is_quick else _plain_strip, QUICK_STRIP if is_quick else None)


def quantize_plain(weight: Tensor | Small, importance: Tensor | None = None) -> Int4:
    """The twin of `quantize` for every device, with the same arguments and errors."""
    return _quantize(weight, importance, _plain_strip)


def _quantize(
    weight: Tensor | Small,
    importance: Tensor | None,
    of_strip: Callable[[Tensor, Tensor | None], Int4],
    strip_len: int | None = None,
) -> Int4:
    *leading, width = shape(weight)
    if width % GROUP:
        raise ConfigError(f"int4: {width} columns are not a multiple of {GROUP}; use int8 or fp8 for this model")
    device = device_of(weight)
    codes = torch.empty(*leading, width // 2, dtype=torch.uint8, device=device)
    scales = torch.empty(*leading, width // GROUP, dtype=torch.bfloat16, device=device)
    flat_codes, flat_scales = codes.view(-1, width // 2), scales.view(-1, width // GROUP)
    costs = None if importance is None else importance.to(device).float()
    for rows, numbers in strips(weight, strip_len):
        strip = of_strip(numbers, costs)
        flat_codes[rows], flat_scales[rows] = strip.codes, strip.scales
    return Int4(codes, scales)


def _quick_strip(numbers: Tensor, costs: Tensor | None) -> Int4:
    assert costs is None, "the kernels count all columns alike"
    return native.quantize_int4(numbers, REACHES)


def _plain_strip(numbers: Tensor, costs: Tensor | None) -> Int4:
    groups = numbers.view(-1, GROUP)  # g 32
    cost = None if costs is None else costs.expand_as(numbers).reshape(-1, GROUP)  # g 32
    scale = best_scales(groups, cost)
    rows, width = numbers.shape
    return Int4(pack(nearest(groups, scale)).view(rows, width // 2), scale.view(rows, width // GROUP).bfloat16())


def best_scales(groups: Tensor, cost: Tensor | None = None) -> Tensor:
    """Returns the scale of each group: float32 [g 1], already rounded to bfloat16. groups and cost float32 [g 32].

    For fixed codes q the best scale is <w, q>/<q, q>, and what it saves of <w, w> is <w, q>^2/<q, q>: so each reach
    costs one rounding and two sums. The winner is rounded, its codes are taken anew, and its scale once more. All in
    units of the group's extreme, so that no square over- or underflows.
    """
    extreme = extremes(groups)  # g 1
    unit = groups * _reciprocal(extreme)  # g 32, within -1..1
    weighted = unit if cost is None else unit * cost
    best, best_gain = torch.full_like(extreme, 1 / LOWEST), torch.full_like(extreme, -1.0)
    codes, product = torch.empty_like(unit), torch.empty_like(unit)
    for reach in REACHES:
        torch.mul(unit, -reach, out=codes).round_().clamp_(LOWEST, HIGHEST)
        scale, gain = _fit(codes, weighted, cost, product)
        best, best_gain = torch.where(gain > best_gain, scale, best), torch.maximum(gain, best_gain)
    best = _round(best, extreme)
    best = _round(_fit(nearest(unit, best), weighted, cost, product)[0], extreme)
    for rule in (1 / LOWEST, -1 / LOWEST):  # Q4_0's, and Meta's where it differs: rounding may have let them win
        ruled = _round(torch.full_like(best, rule), extreme)
        best = torch.where(_error(unit, ruled, cost) < _error(unit, best, cost), ruled, best)
    return (best * extreme).bfloat16().float()


def extremes(groups: Tensor) -> Tensor:
    """Returns the number of largest magnitude of each group, with its sign, [g 1]; of equals the negative one."""
    lowest, highest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    return torch.where(highest > -lowest, highest, lowest)


def nearest(groups: Tensor, scale: Tensor) -> Tensor:
    """Returns the codes, whole float32 numbers -8..7 [g 32], that come nearest to the numbers under `scale` [g 1]."""
    return (groups * _reciprocal(scale)).round_().clamp_(LOWEST, HIGHEST)


def _fit(codes: Tensor, weighted: Tensor, cost: Tensor | None, product: Tensor) -> tuple[Tensor, Tensor]:
    """The best scale for these codes and what it saves, both [g 1]. `product` is overwritten."""
    along = torch.mul(codes, weighted, out=product).sum(-1, keepdim=True)  # g 1
    torch.mul(codes, codes, out=product)
    length = (product if cost is None else product.mul_(cost)).sum(-1, keepdim=True)  # g 1
    scale = along / length.clamp_min_(TINY)  # g 1, 0 where all codes are
    return scale, along * scale


def _error(groups: Tensor, scale: Tensor, cost: Tensor | None) -> Tensor:
    off = nearest(groups, scale).mul_(scale).sub_(groups)
    return off.mul_(off if cost is None else off * cost).sum(-1, keepdim=True)


def _reciprocal(x: Tensor) -> Tensor:
    """1/x, finite also where x is 0, as in a group of zeros."""
    return x.abs().clamp_min_(TINY).reciprocal_().copysign_(x)


def _round(scale: Tensor, extreme: Tensor) -> Tensor:
    """A scale in units of the extreme, rounded as it will be stored."""
    return (scale * extreme).bfloat16().float() * _reciprocal(extreme)
