"""The instructions of compiled steps are chosen by what the machine can do, not by how soon a probe answers."""

import shutil
import subprocess
import sys

import pytest
import torch

from puna.kernels import training
from puna.train.instructions import TRIES, arithmetic, settle_instructions

LATE = """
import subprocess, sys
from collections import Counter
from torch._inductor import cpu_vec_isa
from puna.train.instructions import settle_instructions

asked = Counter()
answer = cpu_vec_isa.subprocess.run

def run(command, **options):
    if command[0] == sys.executable:
        asked[command[-1]] += 1
        if asked[command[-1]] <= int(sys.argv[1]):
            raise subprocess.TimeoutExpired(command, 60)
    return answer(command, **options)

cpu_vec_isa.subprocess.run = run
print(settle_instructions())
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="graphs are compiled by g++, which is not here")


def settled_behind(late_answers: int) -> str:
    """The flags chosen in a process whose probes answer too late so many times each, as on a busy machine."""
    argv = [sys.executable, "-W", "ignore", "-c", LATE, str(late_answers)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_probes_that_answer_too_late_change_nothing() -> None:
    flags = settle_instructions()
    assert settled_behind(TRIES - 1) == flags
    assert arithmetic(compiled=True) == f"{arithmetic(compiled=False)} {flags}".rstrip()


def test_probes_that_never_answer_count_as_no() -> None:
    assert settled_behind(TRIES) == ""


def test_the_version_and_the_processor_are_named() -> None:
    own = " own kernels" if training.available() else ""
    assert arithmetic(compiled=False) == f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}{own}"
