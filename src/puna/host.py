"""What this machine is, from what its system says of itself: processor, memory, graphics processors, packages.

In: nothing but the system's own files. Out: a frozen `Host`, for records and for people. Nothing heavy is imported and
nothing is measured, so that asking takes milliseconds. What the system does not say is None or empty, never guessed.
Not here: how fast anything is (`bench.machine`).

Source: proc(5) for /proc/cpuinfo and /proc/meminfo; cgroups(7), memory.max and cpu.max, which bound containers;
`nvidia-smi --query-gpu`, for NVIDIA's. The names of instructions are those of Linux.
"""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve")
"""Vector instructions that matter to kernels here and in torch, of all that a processor may have."""

PACKAGES = ("torch", "numpy", "tiktoken", "pillow", "triton")
"""What results may depend on besides puna."""

_CGROUP = Path("/sys/fs/cgroup")
_ASK = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_ASK_SECONDS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A graphics processor, and the bytes of its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine. cores: that this process may use; memory_bytes: likewise, where the system says.

    packages   name -> version of what is installed, of `PACKAGES`
    """

    processor: str
    instructions: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    system: str
    python: str
    packages: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Host":
        """Returns the host that `to_json` told of. Raises TypeError or KeyError for anything else."""
        gpus = tuple(Gpu(**each) for each in document["gpus"])
        return cls(**{**document, "gpus": gpus, "instructions": tuple(document["instructions"])})


def describe() -> Host:
    """Returns what this machine is."""
    flags = (_field("/proc/cpuinfo", "flags") or _field("/proc/cpuinfo", "Features") or "").split()
    return Host(
        processor=_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        cores=_cores(),
        memory_bytes=_memory(),
        gpus=tuple(_gpus()),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=versions(PACKAGES),
    )


def versions(names: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cores() -> int:
    """Returns how many processors this process gets: those it may run on, within its container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text("utf-8").split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))  # "max" has no number: no bound
    return allowed


def _memory() -> int | None:
    found = []
    if (kib := _field("/proc/meminfo", "MemTotal")) is not None:
        found.append(int(kib.split()[0]) * 1024)
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found.append(int((_CGROUP / "memory.max").read_text("utf-8")))
    return min(found, default=None)


def _gpus() -> Iterable[Gpu]:
    try:
        run = subprocess.run(_ASK, capture_output=True, text=True, check=False, timeout=_ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in run.stdout.splitlines() if run.returncode == 0 else ():
        name, _, mebibytes = line.rpartition(",")
        with suppress(ValueError):
            yield Gpu(name=name.strip(), memory_bytes=int(mebibytes) * 2**20)


def _field(file: str, name: str) -> str | None:
    """Returns what the first line of a /proc file that begins with `name:` says, None where there is none."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
