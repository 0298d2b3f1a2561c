"""Compiles the C++ kernels for the processor of this machine, when the package is installed.

In: the sources in `native/`. Out: one shared library beside them, whose name holds a digest of the sources and of what
this processor can do: a library of older sources or another processor is never taken for the right one.
Runs as a step of the installation (`hatch_build.py`), or by hand: python -m puna.kernels.build
Only the standard library is used here: at installation there is no other.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).with_name("native")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"})
COMMAND = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-pthread")


Signatures = Mapping[str, tuple[tuple[Any, ...], Any]]
"""Types of arguments and of the result, as ctypes has them, by the name of a function."""


class CannotBuildError(Exception):
    """This machine cannot build or use the kernels; the text says why. The portable path is used instead."""


def library() -> Path:
    """Returns where the library for these sources and this processor is, or would be.

    Raises CannotBuildError on a processor without the instructions that the kernels are written in.
    """
    flags = _processor_flags()
    if missing := sorted(NEEDED - flags):
        raise CannotBuildError(f"this processor has no {', '.join(missing)}")
    digest = hashlib.sha256(" ".join((*COMMAND, *sorted(flags))).encode())
    for file in _files():
        digest.update(file.read_bytes())
    return SOURCES / f"puna-{digest.hexdigest()[:16]}.so"


def bound(signatures: Signatures) -> ctypes.CDLL | None:
    """Returns the library with its functions declared, arguments and result by name; None where none was built."""
    try:
        path = library()
    except CannotBuildError:
        return None
    if not path.exists():
        return None
    loaded = ctypes.CDLL(str(path))
    for name, (arguments, result) in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, result
    return loaded


def build() -> Path:
    """Compiles the library, unless it is there, and returns its path. Libraries of other sources are removed.

    Raises CannotBuildError without such a processor or a C++ compiler, or when the compiler fails.
    """
    target = library()
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotBuildError("no C++ compiler was found: install g++, or name one in CXX")
    with tempfile.TemporaryDirectory(dir=SOURCES) as folder:
        made = Path(folder, target.name)
        command = [compiler, *COMMAND, "-o", str(made), str(SOURCES / "native.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CannotBuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        made.replace(target)
    for other in SOURCES.glob("puna-*.so"):
        if other != target:
            other.unlink()
    return target


def _files() -> list[Path]:
    return sorted(file for file in SOURCES.iterdir() if file.suffix in (".h", ".cpp"))


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


if __name__ == "__main__":
    try:
        print(build())
    except CannotBuildError as error:
        sys.exit(f"puna: the C++ kernels were not built: {error}")
