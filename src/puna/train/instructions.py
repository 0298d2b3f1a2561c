"""The vector instructions of compiled steps: those that processor and compiler can do, however busy the machine is.

Out: a description of how this process adds numbers, which a checkpoint keeps. torch's graph compiler tries every set of
instructions in a child process, and counts a child that has not answered within a minute as one that failed. On a busy
machine a run that was killed and started again could so continue with other instructions, hence with other bits.
What else was looked at: docs/decisions/015.
"""

import torch
from torch._inductor.cpu_vec_isa import VecISA, pick_vec_isa

from puna.kernels import training

TRIES = 5
"""How often a set of instructions is tried before it counts as one that this machine cannot do."""


def settle_instructions() -> str:
    """Chooses the instructions of graphs that this process compiles from now on, and returns their compiler flags."""
    try_once = VecISA.check_build

    def try_patiently(isa: VecISA, code: str) -> bool:
        return any(try_once(isa, code) for _ in range(TRIES))

    VecISA.check_build = try_patiently  # type: ignore[method-assign, assignment]
    try:
        return pick_vec_isa().build_arch_flags()  # torch remembers the choice
    finally:
        VecISA.check_build = try_once  # type: ignore[method-assign]


def arithmetic(compiled: bool) -> str:
    """Returns what the bits of a step depend on beside recipe and data: the same text, the same bits."""
    parts = [f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability()]
    if training.available():
        parts.append("own kernels")
    return " ".join([*parts, settle_instructions()] if compiled else parts)
