"""What this machine can run, which fast paths are there, what is missing and how to get it: `puna doctor`.

In: the system's own files, what is installed, the assets of the package. Out: an `Examination`. Nothing heavy is
imported, torch neither, and nothing is measured, so it takes a fraction of a second and works where torch is broken.
What cannot be found out is a finding, not an error.
Not here: how fast it goes (`bench`), what larger machines would take (`plan`).
"""

import ctypes
import importlib.util
import json
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from puna import host
from puna.card import memory
from puna.card.words import size, whole
from puna.config import LlamaConfig
from puna.hardware import usable
from puna.host import Host
from puna.kernels.build import CannotBuildError, library
from puna.presets import PRESETS

State = Literal["good", "missing", "broken", "note"]
MARKS: Mapping[State, str] = {"good": "+", "missing": "-", "broken": "!", "note": " "}
FREE_SHARE = 0.9
"""Of the memory that is free now, what a model may take."""

POWERCAP = Path("/sys/class/powercap")
GUARD_FILES = ("injection.bin", "phrases.toml", *(f"policies/{name}.toml" for name in ("chatbot", "agent", "off")))


class Finding(NamedTuple):
    """What was found in an area, and what would help where that is not good."""

    area: str
    state: State
    says: str
    remedy: str = ""


class Fit(NamedTuple):
    """A model where it fits best here: in which numbers, where, and how long one sequence may get; `how` runs it.

    numbers "" where it fits nowhere; then `where` says what is short.
    """

    model: str
    numbers: str
    where: str
    weights_bytes: int
    tokens: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All of it. Bytes: free now, of memory and of the disk under the current folder."""

    host: Host
    free_memory_bytes: int | None
    free_disk_bytes: int
    findings: tuple[Finding, ...]
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self) | {
            "findings": [each._asdict() for each in self.findings],
            "fits": [each._asdict() for each in self.fits],
        }

    def text(self) -> str:
        """Returns it for people."""
        here = self.host
        gpus = ", ".join(f"{gpu.name} ({size(gpu.memory_bytes)})" for gpu in here.gpus) or "none"
        instructions = ", ".join(here.instructions) or "no vector instructions known"
        rows = [
            f"processor   {here.processor}, {here.cores} cores, {instructions}",
            f"memory      {size(self.free_memory_bytes)} free of {size(here.memory_bytes)}",
            f"GPUs        {gpus}",
            f"disk        {size(self.free_disk_bytes)} free here",
            f"software    Python {here.python}, "
            + ", ".join(f"{name} {version}" for name, version in here.packages.items()),
        ]
        for area in dict.fromkeys(each.area for each in self.findings):
            rows += ["", area]
            for each in self.findings:
                if each.area == area:
                    rows.append(f"  {MARKS[each.state]} {each.says}{f': {each.remedy}' if each.remedy else ''}")
        rows += ["", "models"]
        rows += [_fit_row(each) for each in self.fits]
        return "\n".join(rows)


def examine(folder: Path = Path()) -> Examination:
    """Returns what this machine is good for; `folder` is where models would lie."""
    here = host.describe()
    free = _free_memory(here)
    disk = shutil.disk_usage(folder).free
    findings = (*_fast_paths(here), *_extras(), *_assets(), *_meters(here))
    fits = tuple(_fit(name, config, here, free, disk) for name, config in PRESETS.items())
    return Examination(host=here, free_memory_bytes=free, free_disk_bytes=disk, findings=findings, fits=fits)


def _fit_row(fit: Fit) -> str:
    if not fit.numbers:
        return f"  - {fit.model:9} does not fit: {fit.where}"
    what = f"{fit.model:9} {fit.numbers:6} {size(fit.weights_bytes):>8} in {fit.where}"
    return f"  + {what}, up to {whole(fit.tokens)} tokens: {fit.how}"


# Fast paths -----------------------------------------------------------------------------------------------------------


def _fast_paths(here: Host) -> Iterator[Finding]:
    area = "fast paths"
    yield _native(area)
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler:
        yield Finding(area, "good", f"compiled training steps: {Path(compiler).name} is there")
    else:
        yield Finding(area, "missing", "compiled training steps need a C++ compiler", "install g++")
    yield from _cuda(area, here)


def _native(area: str) -> Finding:
    """Returns whether the C++ kernels were built for this processor and load."""
    try:
        path = library()
    except CannotBuildError as error:
        return Finding(area, "note", f"C++ kernels are for AVX-512 processors, and {error}: plain torch is used")
    if not path.exists():
        return Finding(area, "missing", "C++ kernels are not built", "python -m puna.kernels.build (needs g++)")
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return Finding(area, "broken", f"C++ kernels do not load ({error})", "python -m puna.kernels.build")
    return Finding(area, "good", f"C++ kernels: built for this processor, and they load ({path.name})")


def _cuda(area: str, here: Host) -> Iterator[Finding]:
    cuda = _torch_cuda()
    if not here.gpus:
        yield Finding(area, "note", "no NVIDIA GPU answers here: models run on the processor")
        return
    if cuda is None:
        remedy = "install a build of torch for CUDA (pytorch.org says how)"
        yield Finding(area, "missing", "a GPU is there, but this torch is built for processors alone", remedy)
        return
    yield Finding(area, "good", f"torch is built for CUDA {cuda}")
    if "triton" in here.packages:
        yield Finding(area, "good", "Triton kernels: tried against plain torch when a model is loaded")
    else:
        yield Finding(area, "missing", "Triton kernels", "pip install 'puna[gpu]'")


def _torch_cuda() -> str | None:
    """Returns the CUDA version that torch was built for, None without, read from its files: importing takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda.*=\s*'([\d.]+)'", version.read_text("utf-8"), re.MULTILINE) if version.is_file() else None
    return None if found is None else found[1]


# What may be installed besides ----------------------------------------------------------------------------------------


def _extras() -> Iterator[Finding]:
    """Yields each optional extra with what it lacks, as the package's own metadata name them."""
    area = "extras"
    wanted: dict[str, list[str]] = {}
    for line in _requirements():
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        named = re.match(r"[\w.-]+", requirement.strip())
        if extra and named and named[0] != "puna" and extra[1] != "dev":
            wanted.setdefault(extra[1], []).append(named[0])
    for group, names in wanted.items():
        lacking = sorted(set(names) - set(host.versions(names)))
        if lacking:
            yield Finding(area, "missing", f"{group} lacks {', '.join(lacking)}", f"pip install 'puna[{group}]'")
        else:
            yield Finding(area, "good", f"{group}: {', '.join(sorted(set(names)))}")
    if not wanted:
        yield Finding(area, "note", "puna runs from its sources and is not installed, so its extras are not known")


def _requirements() -> list[str]:
    try:
        return metadata.requires("puna") or []
    except metadata.PackageNotFoundError:
        return []


# What ships -----------------------------------------------------------------------------------------------------------


def _assets() -> Iterator[Finding]:
    area, root = "assets", Path(str(files("puna"))) / "assets"
    remedy = "install puna again"
    problem = _checkpoint_problem(root / "cria")
    if problem:
        yield Finding(area, "broken", f"cria, the model that ships: {problem}", remedy)
    else:
        yield Finding(area, "good", "cria, the model that ships, is whole")
    lacking = [name for name in GUARD_FILES if not (root / "guard" / name).is_file()]
    broken = [
        name
        for name in GUARD_FILES
        if name.endswith(".toml") and name not in lacking and not _is_toml(root / "guard" / name)
    ]
    if lacking or broken:
        yield Finding(area, "broken", f"protections: {', '.join(lacking + broken)} missing or damaged", remedy)
    else:
        yield Finding(area, "good", "protections are whole")


def _checkpoint_problem(folder: Path) -> str:
    """Returns what is wrong with a folder's files, "" where nothing is."""
    for name in ("config.json", "tokenizer.json"):
        try:
            json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            header_len = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_len, 10**8)))
        end = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{weights.name} cannot be read ({error})"
    missing = 8 + header_len + int(end) - weights.stat().st_size
    return f"{weights.name} lacks {missing:,} bytes" if missing > 0 else ""


def _is_toml(file: Path) -> bool:
    try:
        tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _meters(here: Host) -> Iterator[Finding]:
    """Yields whether energy can be metered."""
    area = "energy"
    counters = sorted(POWERCAP.glob("intel-rapl:[0-9]*/energy_uj"))
    readable = [file for file in counters if _is_readable(file)]
    if here.gpus:
        pynvml = bool(host.versions(["nvidia-ml-py", "pynvml"]))
        state: State = "good" if pynvml else "missing"
        yield Finding(area, state, "GPUs are metered by NVML", "" if pynvml else "pip install nvidia-ml-py")
    if readable:
        yield Finding(area, "good", "processors are metered by RAPL")
    elif counters:
        yield Finding(
            area, "missing", "processors have meters that only root may read", "chmod o+r their energy_uj files"
        )
    elif not here.gpus:
        yield Finding(area, "note", "no meter here: declare watts in a recipe's [energy], or energy stays unknown")


def _is_readable(file: Path) -> bool:
    try:
        file.read_text("utf-8")
    except OSError:
        return False
    return True


# Models ---------------------------------------------------------------------------------------------------------------


def _fit(name: str, config: LlamaConfig, here: Host, free: int | None, disk: int) -> Fit:
    """Returns where a model fits best: as it is on a GPU, then smaller, then in memory, then with experts on disk."""
    places = [(gpu.name, usable(gpu.memory_bytes), ("none", "fp8", "int4")) for gpu in here.gpus[:1]]
    if free is not None:
        places.append(("memory", int(free * FREE_SHARE), ("none", "int8", "int4")))
    for where, room, schemes in places:
        for scheme in schemes:
            weights = memory.model_bytes(config, memory.SCHEMES[scheme])
            tokens = memory.longest(config.text, max(0, room - weights))
            if weights <= room and tokens:
                return Fit(name, scheme.replace("none", "bf16"), where, weights, tokens, _how(name, scheme))
    return _away(name, config, int((free or 0) * FREE_SHARE), disk)


def _away(name: str, config: LlamaConfig, room: int, disk: int) -> Fit:
    """Returns what running with routed experts on disk takes."""
    parts = memory.by_part(config, memory.SCHEMES["int4"])
    experts, rest = parts["routed_experts"], sum(parts.values()) - parts["routed_experts"]
    tokens = memory.longest(config.text, max(0, room - rest))
    if rest > room or not tokens:
        return Fit(name, "", f"in int4 it takes {size(rest + experts)}", rest + experts, 0, "")
    if not experts or experts > disk:
        short = f"{size(experts)} of disk for its experts" if experts else f"{size(rest)} of memory"
        return Fit(name, "", f"it would take {short}", rest + experts, 0, "")
    how = f"{_how(name, 'int4')} --offload disk (slow: {size(experts)} of experts on disk)"
    return Fit(name, "int4", "memory and on disk", rest + experts, tokens, how)


def _how(name: str, scheme: str) -> str:
    what = "puna chat" if name == "cria" else "puna chat DIR"
    return what if scheme == "none" else f"{what} --quantize {scheme}"


def _free_memory(here: Host) -> int | None:
    """Returns the bytes of memory that programs may still take; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return here.memory_bytes
    return free if here.memory_bytes is None else min(free, here.memory_bytes)
