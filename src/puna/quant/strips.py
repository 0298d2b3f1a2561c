"""A weight of any format as float32, a few rows at a time: what every quantiser reads, so that any format goes to any.

A strip is small enough to stay in a processor's cache through all passes over it, and large on an accelerator.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.kernels.formats import Small, dequantize, shape

STRIP = {"cpu": 1 << 17}  # numbers: with its temporaries a strip fills half of a cache of 1 to 2 MiB
STRIP_ELSEWHERE = 1 << 25


def strips(weight: Tensor | Small, n_numbers: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yields runs of rows and their numbers, float32 [rows in]; rows count through all experts of [.. out in].

    A run has about `n_numbers`; None takes what suits several passes over them. The numbers are valid until the next
    are asked for: all lie in the same place, so that no more than one strip is in memory beside the weight.

    Raises WeightsError for a number that is infinite or none at all: nothing can be a multiple of its scale.
    """
    *leading, width = shape(weight)
    n_rows = math.prod(leading)
    rows = weight.view(n_rows, width) if isinstance(weight, Tensor) else _flat(weight, n_rows)
    step = max(1, (n_numbers or STRIP.get(device_of(weight).type, STRIP_ELSEWHERE)) // width)
    place = torch.empty(min(step, n_rows), width, dtype=torch.float32, device=device_of(weight))  # rows in
    for start in range(0, n_rows, step):
        run = slice(start, min(start + step, n_rows))
        part = rows[run] if isinstance(rows, Tensor) else type(rows)(rows.codes[run], rows.scales[run])
        numbers = place[: run.stop - run.start]
        numbers.copy_(part if isinstance(part, Tensor) else dequantize(part, torch.float32))
        if not all(map(math.isfinite, numbers.aminmax())):  # which need no memory of their own
            raise WeightsError(f"row {start} ff.: holds a number that is not finite; the checkpoint is damaged")
        yield run, numbers


def device_of(weight: Tensor | Small) -> torch.device:
    """Returns where a weight lies."""
    return weight.device if isinstance(weight, Tensor) else weight.codes.device


def _flat(weight: Small, n_rows: int) -> Small:
    return type(weight)(weight.codes.reshape(n_rows, -1), weight.scales.reshape(n_rows, -1))
