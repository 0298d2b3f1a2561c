"""A process that trains keeps its memory: what it frees and takes again is there at once."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
from puna.train.memory import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 27)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_memory()
print(faults(), faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told")
def test_memory_that_was_freed_is_taken_again_without_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    first, second = map(int, done.stdout.split())
    assert first >= 32 and second <= first // 8  # 32 large pages at least are 64 of its 128 megabytes
