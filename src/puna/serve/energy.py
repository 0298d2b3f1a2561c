"""Meters of energy that this machine has: processors that count their own (RAPL), GPUs that do (NVML).

In: nothing but the machine. Out: meters that say how many joules were used since they were made. A machine without one
has none, and nothing is estimated.

Source: Linux, Documentation/power/powercap/powercap.rst (energy_uj, max_energy_range_uj); NVML,
nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was loaded).
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """The energy of one device since now. `read` counts units of `unit_joules` and begins anew at `range_`."""

    def __init__(self, name: str, read: Callable[[], int], unit_joules: float, range_: int | None = None) -> None:
        self.name = name
        self._read = read
        self._unit_joules = unit_joules
        self._range = range_
        self._last = read()
        self._used = 0
        self._lock = threading.Lock()

    def joules(self) -> float:
        """Returns what was used since the meter was made; a meter that began anew in between is read at least once."""
        with self._lock:
            now = self._read()
            used = now - self._last
            self._used += used if used >= 0 or self._range is None else used + self._range
            self._last = now
            return self._used * self._unit_joules


def meters(powercap: Path = POWERCAP) -> list[Meter]:
    """Returns the meters that may be read here: of whole processors, not of their parts, and of GPUs."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if folder.name.count(":") == 1:
            with contextlib.suppress(OSError, ValueError):  # most systems let only root read it
                found.append(_processor(folder))
    return found + _gpus()


def _processor(folder: Path) -> Meter:
    counter = folder / "energy_uj"
    name = (folder / "name").read_text("utf-8").strip()
    range_ = int((folder / "max_energy_range_uj").read_text("utf-8"))
    return Meter(name, lambda: int(counter.read_text("utf-8")), 1e-6, range_)


def _gpus() -> list[Meter]:
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or one without this counter
        pynvml.nvmlInit()
        for i in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(i)
            read = lambda device=device: pynvml.nvmlDeviceGetTotalEnergyConsumption(device)  # noqa: E731
            found.append(Meter(f"gpu-{i}", read, 1e-3))
    return found
