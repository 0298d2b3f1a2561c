"""How much energy work takes, and what that emits: meters of this machine, or declared watts; every figure says which.

In: the machine's counters, and what is declared of it and of its grid. Out: joules with their method, and a record's
kilowatt hours and kilograms. Nothing is estimated silently: without a meter and without declared watts there is no
figure. Only energy of operation is counted: neither what making the machines took, nor what they do afterwards.

Source: Linux, Documentation/power/powercap/powercap.rst (energy_uj, max_energy_range_uj); NVML,
nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was loaded) and nvmlDeviceGetPowerUsage; energy and
emissions, Patterson et al., arXiv 2204.05149: processors x hours x watts x PUE, and that times the grid's intensity.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

Method = Literal["nvml-counter", "nvml-power", "rapl", "declared"]

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
SAMPLE_SECONDS = 0.1  # between two readings of a GPU that tells its power and not its energy


class Meter:
    """The energy of one device since now. `read` counts units of `unit_joules` and begins anew at `range_`."""

    def __init__(
        self, name: str, method: Method, read: Callable[[], float], unit_joules: float, range_: int | None = None
    ) -> None:
        self.name, self.method = name, method
        self._read = read
        self._unit_joules = unit_joules
        self._range = range_
        self._last = read()
        self._used = 0.0
        self._lock = threading.Lock()

    def joules(self) -> float:
        """Returns what was used since the meter was made; a meter that began anew in between is read at least once."""
        with self._lock:
            now = self._read()
            used = now - self._last
            self._used += used if used >= 0 or self._range is None else used + self._range
            self._last = now
            return self._used * self._unit_joules


class Sampled:
    """Joules of a device that tells its power alone: the trapezoids under samples, taken on a thread until `close`."""

    def __init__(self, watts: Callable[[], float], seconds: float = SAMPLE_SECONDS) -> None:
        self._watts, self._seconds = watts, seconds
        self._joules, self._ended = 0.0, threading.Event()
        self._last = time.monotonic(), watts()
        self._thread = threading.Thread(target=self._sample, name="puna watts", daemon=True)
        self._thread.start()

    def __call__(self) -> float:
        return self._joules

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(self._seconds):
            (then, before), now = self._last, (time.monotonic(), self._watts())
            self._joules += (now[0] - then) * (before + now[1]) / 2
            self._last = now


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
    return Meter(name, "rapl", lambda: int(counter.read_text("utf-8")), 1e-6, range_)


def _gpus() -> list[Meter]:
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # no driver
        pynvml.nvmlInit()
        for i in range(pynvml.nvmlDeviceGetCount()):
            found.append(_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i), f"gpu-{i}"))
    return found


def _gpu(nvml: Any, device: Any, name: str) -> Meter:
    try:
        return Meter(name, "nvml-counter", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device), 1e-3)
    except nvml.NVMLError:  # before Volta there is no counter
        return Meter(name, "nvml-power", Sampled(lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1e3), 1.0)


# What is declared, and what follows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is declared of where work is done. None, and of watts zero: not declared.

    processors, tdp_watts, utilisation   used where nothing is metered: watts = all three multiplied
    pue                                  energy of the whole site over that of its machines
    location_kg_per_kwh                  of the grid there, on average; market_kg_per_kwh: of what was bought, zero
                                         where all of it was from sources that emit nothing
    source                               where these numbers are from
    """

    processors: int = 1
    tdp_watts: float = 0.0
    utilisation: float = 1.0
    pue: float = 1.0
    location_kg_per_kwh: float | None = None
    market_kg_per_kwh: float | None = None
    source: str = ""


class Used(NamedTuple):
    """joules of the machines by method; None: neither a meter nor declared watts."""

    joules: dict[str, float] | None
    seconds: float


class Emitted(NamedTuple):
    """kwh with the site's overhead, and kilograms of CO2 equivalent; None where a factor is not declared."""

    kwh: float
    location_kg: float | None
    market_kg: float | None


def declared(hours: float, watts: float) -> Used:
    """Returns what so many processor hours at so many watts take."""
    return Used({"declared": hours * 3600 * watts}, hours * 3600)


def emitted(used: Used, site: Site) -> Emitted | None:
    """Returns energy and emissions at a site; None where the energy is not known."""
    if used.joules is None:
        return None
    kwh = sum(used.joules.values()) / JOULES_PER_KWH * site.pue

    def kilograms(factor: float | None) -> float | None:
        return None if factor is None else kwh * factor

    return Emitted(kwh, kilograms(site.location_kg_per_kwh), kilograms(site.market_kg_per_kwh))


class Stopwatch:
    """Measures what is used from `with` on, by this machine's meters or else as the site declares."""

    def __init__(
        self, site: Site, own: Sequence[Meter] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`own`: the meters to read; None takes all of this machine; an empty sequence leaves them to others."""
        self._site, self._clock = site, clock
        self._is_others = own is not None and not own
        self._meters = list(meters() if own is None else own)

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._before = [meter.joules() for meter in self._meters]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def used(self) -> Used:
        """Returns what was used so far."""
        seconds = self._clock() - self._began
        if self._meters:
            joules: dict[str, float] = {}
            for meter, before in zip(self._meters, self._before, strict=True):
                joules[meter.method] = joules.get(meter.method, 0.0) + meter.joules() - before
            return Used(joules, seconds)
        site = self._site
        if self._is_others or not site.tdp_watts:
            return Used(None, seconds)
        return Used(declared(seconds / 3600, site.tdp_watts * site.utilisation * site.processors).joules, seconds)
