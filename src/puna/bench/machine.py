"""This machine: what it is, what its memory and arithmetic reach, and how busy others keep it meanwhile.

Figures taken while others run are worthless, so every record carries the share of the processors' time that other
programs used and that the host took away ("steal", on virtual machines).
Not here: floors (`work`), timing a model (`measure`).
Source: proc(5) for /proc/stat, /proc/cpuinfo and /proc/meminfo; elsewhere than on Linux these are not known.
"""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

READ_BYTES = 2**30
"""Memory to read for its speed: more than caches hold."""

READS = 60
"""How often it is read, two seconds of a processor. On a virtual machine its speed changes by a half within seconds,
with what others on the same host do, and the speed of a model with it."""

GEMM_SIZE = 2048
"""Rows and columns of the matrices to multiply for their speed."""

_USER_HZ = os.sysconf("SC_CLK_TCK")


class Machine(NamedTuple):
    """What a figure belongs to. `accelerator` is None on the processor."""

    processor: str
    n_cores: int
    n_threads: int
    memory_gib: float | None
    accelerator: str | None


class Ticks(NamedTuple):
    """Seconds that all processors together spent since they started, and those of this process."""

    total: float
    idle: float
    steal: float
    own: float


class Disturbance(NamedTuple):
    """Shares of the processors' time that others had, and how many programs wanted one on average (None: unknown)."""

    steal_share: float | None
    others_share: float | None
    load_1m: float | None


def describe(device: torch.device) -> Machine:
    """Returns what this machine is, and what `device` is on it."""
    return Machine(
        processor=_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        n_cores=os.cpu_count() or 1,
        n_threads=torch.get_num_threads(),
        memory_gib=None if (kib := _line("/proc/meminfo", "MemTotal")) is None else int(kib.split()[0]) / 2**20,
        accelerator=None if device.type == "cpu" else torch.cuda.get_device_name(device),
    )


def _line(file: str, field: str) -> str | None:
    """Returns what a file of /proc says behind `field`, or None where there is no such file or field."""
    if not Path(file).exists():
        return None
    lines = (line.partition(":") for line in Path(file).read_text("utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), None)


def ticks() -> Ticks | None:
    """Returns where the processors' time went so far, or None where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, idle, wait, *more = (
        int(n) / _USER_HZ for n in stat.read_text("utf-8").split("\n")[0].split()[1:]
    )
    interrupts, softly, steal = more[:3]
    own = os.times()
    return Ticks(
        total=user + nice + system + idle + wait + interrupts + softly + steal,
        idle=idle + wait,
        steal=steal,
        own=own.user + own.system + own.children_user + own.children_system,
    )


def disturbance(before: Ticks | None, after: Ticks | None) -> Disturbance:
    """Returns who else used the processors between two readings."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if before is None or after is None or after.total <= before.total:
        return Disturbance(None, None, load)
    total, idle, steal, own = (b - a for a, b in zip(before, after, strict=True))
    return Disturbance(
        steal_share=steal / total, others_share=max(0.0, total - idle - steal - own) / total, load_1m=load
    )


def peak_bytes(device: torch.device) -> int:
    """Returns the most memory that this process had so far: of the device, or of the machine where that is the same."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Returns the most memory of the machine that this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_bytes_per_second(device: torch.device, runs: int, n_bytes: int) -> float:
    """Returns how fast memory is read, the median of `runs`: a sum over more numbers than caches hold."""
    numbers = torch.ones(n_bytes // 4, device=device)
    return n_bytes / _seconds(numbers.sum, device, runs)


def flops(device: torch.device, dtype: torch.dtype, runs: int, size: int) -> float:
    """Returns the operations a second of a square matrix product in `dtype`, the median of `runs`."""
    if dtype == torch.int8:
        whole = torch.randint(-8, 8, (size, size), dtype=torch.int8, device=device)
        return 2 * size**3 / _seconds(lambda: torch._int_mm(whole, whole), device, runs)
    matrix = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _seconds(lambda: matrix @ matrix, device, runs)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """Returns the median seconds of `call`, after one that does not count."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        call()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
