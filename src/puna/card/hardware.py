"""Accelerators by the names that cards of models use, and how much of one a model may take.

Source: data sheets of NVIDIA (H100 SXM5, H200, B200, A100, L40S, GeForce RTX 4090) and AMD (Instinct MI300X). Bytes are
those on the sheet, 10^9 each.
"""

from typing import NamedTuple

USABLE = 0.95
"""The share of a device's memory that weights, keys and values may take: the rest is the driver's and a step's."""


class Accelerator(NamedTuple):
    """A device and its memory in bytes."""

    name: str
    memory_bytes: int


ACCELERATORS = (
    Accelerator("RTX 4090", 24_000_000_000),
    Accelerator("L40S", 48_000_000_000),
    Accelerator("A100-80GB", 80_000_000_000),
    Accelerator("H100-80GB", 80_000_000_000),
    Accelerator("H200", 141_000_000_000),
    Accelerator("B200", 180_000_000_000),
    Accelerator("MI300X", 192_000_000_000),
)


def usable(memory_bytes: int) -> int:
    """Returns what weights, keys and values may take of a device."""
    return int(memory_bytes * USABLE)
