"""Kinds of accelerators and what they offer: memory, arithmetic, links, watts. The one table of them, with its sources.

In: a name such as "h100". Out: a `Hardware`. Peaks are those of datasheets, without sparsity; what programs reach of
them is another matter (`plan`). Memory is what a driver leaves to programs, a little more than 80 GB on an H100 "80GB"
and a little less than 141 on an H200. Gigabytes are 10^9 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Numbers = Literal["float32", "bfloat16", "fp8", "int8", "fp4"]

Collective = Literal["gather", "reduce", "sum", "exchange"]
"""Ways in which ranks tell each other something: all gather, reduce and scatter, all reduce, all to all."""

GIB = 2**30

USABLE = 0.95
"""The share of a device's memory that weights, keys and values may take: the rest is the driver's and a step's."""


class Link(NamedTuple):
    """Bytes that a rank sends in a second by a collective, and how long its first byte takes."""

    n_bytes: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator, and what connects it with others.

    memory_bytes, read_bytes   what programs may use of its memory, and how much of it is read in a second
    flops                      operations a second by kind of number, a multiply-add being two
    watts                      declared peak power, as the card counts it
    node                       how many share a machine with fast links (of a rack where the rack is one)
    link_bytes, net_bytes      what one sends in a second to others of its node, and to other nodes, in one direction
    link_seconds, net_seconds  how long the first byte takes
    reserve_bytes              taken by the driver's context and buffers of collectives in every process
    has_kernels                a processor for which the C++ kernels are built
    collectives                what was measured of them, where links do not tell: on processors they are copies
    """

    name: str
    memory_bytes: int
    read_bytes: float
    flops: Mapping[Numbers, float]
    watts: float
    node: int
    link_bytes: float
    net_bytes: float
    source: str
    link_seconds: float = 4e-6
    net_seconds: float = 12e-6
    reserve_bytes: int = int(1.5e9)
    is_cpu: bool = False
    has_kernels: bool = False
    collectives: Mapping[Collective, Link] = field(default_factory=dict)

    def rate(self, numbers: Numbers) -> float:
        """Returns operations a second in these numbers, or in bfloat16 where it has none of them."""
        return self.flops.get(numbers, self.flops["bfloat16"])


def _gpu(
    name: str,
    gib: float,
    read: float,
    bf16: float,
    watts: float,
    link: float,
    net: float,
    source: str,
    *,
    fp8: float = 0.0,
    int8: float = 0.0,
    fp4: float = 0.0,
    fp32: float = 0.0,
    node: int = 8,
) -> Hardware:
    """Returns a kind: memory in GiB, read in TB/s, arithmetic in TFLOP/s, links in GB/s one way."""
    rates: dict[Numbers, float] = {"bfloat16": bf16, "fp8": fp8, "int8": int8, "fp4": fp4, "float32": fp32}
    return Hardware(
        name=name,
        memory_bytes=round(gib * GIB),
        read_bytes=read * 1e12,
        flops={numbers: rate * 1e12 for numbers, rate in rates.items() if rate},
        watts=watts,
        node=node,
        link_bytes=link * 1e9,
        net_bytes=net * 1e9,
        source=source,
    )


KINDS: Mapping[str, Hardware] = {
    "h100": _gpu(
        "H100 80GB SXM", 79.1, 3.35, 989.4, 700, 450, 50, "NVIDIA H100 datasheet; NVLink 4; NDR InfiniBand",
        fp8=1978.9, int8=1978.9, fp32=66.9,
    ),
    "h200": _gpu(
        "H200 141GB SXM", 139.8, 4.8, 989.4, 700, 450, 50, "NVIDIA H200 datasheet; NVLink 4; NDR InfiniBand",
        fp8=1978.9, int8=1978.9, fp32=66.9,
    ),
    "a100": _gpu(
        "A100 80GB SXM", 79.1, 2.039, 312, 400, 300, 25, "NVIDIA A100 datasheet; NVLink 3; HDR InfiniBand",
        int8=624, fp32=19.5,
    ),
    "b200": _gpu(
        "B200 HGX", 178.3, 8.0, 2250, 1000, 900, 50, "NVIDIA HGX B200 datasheet; NVLink 5; NDR InfiniBand",
        fp8=4500, int8=4500, fp4=9000, fp32=75,
    ),
    "gb200": _gpu(
        "GB200 NVL72", 184.3, 8.0, 2500, 1200, 900, 50, "NVIDIA GB200 NVL72 datasheet; NVLink 5 over 72",
        fp8=5000, int8=5000, fp4=10000, fp32=80, node=72,
    ),
    "mi300x": _gpu(
        "MI300X", 191.7, 5.3, 1307.4, 750, 448, 50, "AMD Instinct MI300X datasheet; Infinity Fabric; 400 Gb/s",
        fp8=2614.9, int8=2614.9, fp32=163.4,
    ),
    "l40s": _gpu(
        "L40S", 44.4, 0.864, 362.05, 350, 32, 12.5, "NVIDIA L40S datasheet; PCIe 4 x16; 100 Gb/s Ethernet",
        fp8=733, int8=733, fp32=91.6,
    ),
    "rtx4090": _gpu(
        "RTX 4090", 23.6, 1.008, 165.2, 450, 25, 1.25, "NVIDIA Ada whitepaper, float32 sums; PCIe 4 through the host",
        fp8=330.3, int8=660.6, fp32=82.6,
    ),
}  # fmt: skip
"""Memory in GiB as torch reports it (`total_memory`) on such a device; all else from the named datasheets.
Each GPU has a network port of its own."""


def usable(memory_bytes: int) -> int:
    """Returns what weights, keys and values may take of a device."""
    return int(memory_bytes * USABLE)
