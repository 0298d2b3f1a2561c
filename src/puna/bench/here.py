"""This machine as hardware that plans can count with: its memory, and what a quick probe reads and multiplies.

Source of the probes: `machine`, as `puna bench` makes them; they take some seconds.
"""

import os

import torch

from puna.bench import machine
from puna.hardware import Hardware
from puna.kernels import native

PRODUCTS = 7
"""How often matrices are multiplied for their speed."""


def hardware_here() -> Hardware:
    """Returns what this machine's processor was just measured to be. Others who use it make it look slower."""
    cpu = torch.device("cpu")
    described = machine.describe(cpu)
    return Hardware(
        name=f"{described.processor}, {described.n_threads} threads",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        read_bytes=machine.read_bytes_per_second(cpu, machine.READS, machine.READ_BYTES),
        flops={
            "float32": _flops(torch.float32),
            "bfloat16": _flops(torch.bfloat16),
            "int8": _flops(torch.int8),
        },
        watts=0.0,
        node=1,
        link_bytes=5e9,
        net_bytes=1e9,
        source="measured here, just now",
        link_seconds=2e-5,
        net_seconds=1e-4,
        reserve_bytes=250_000_000,
        is_cpu=True,
        has_kernels=native.available(),
    )


def _flops(dtype: torch.dtype) -> float:
    return machine.flops(torch.device("cpu"), dtype, PRODUCTS, machine.GEMM_SIZE)
