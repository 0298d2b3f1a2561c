"""Bytes that a plan says against the high-water marks of processes that load, serve and train a toy.

The allocator is told to give memory back at once, since what it keeps for later is no business of a plan's.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna.card.memory import SCHEMES
from puna.hardware import KINDS
from puna.kernels import native, training
from puna.plan.activations import Kept, Shape
from puna.plan.cluster import Cluster
from puna.plan.serve import Asked, loading_bytes, serve
from puna.plan.shares import Serving, Training
from puna.plan.training import Job, rank
from tests.reference.measured_memory import toy

HONEST = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ERROR = 0.05
HERE = Cluster(hardware=replace(KINDS["h100"], has_kernels=native.available(), reserve_bytes=0), count=1)
"""Only memory is asked of it. Where C++ kernels are built, they run the toy."""
SERVED = [
    ("none", 1, 512),
    ("none", 1, 4096),
    ("none", 2, 4096),
    ("none", 4, 2048),
    ("none", 8, 1024),
    ("int4", 1, 2048),
    ("int4", 4, 1024),
    ("int4", 8, 4096),
]
"""Numbers of the weights, sequences at once, tokens of each."""


def measured(*arguments: object) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.reference.measured_memory", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | HONEST, check=True)
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    command = [sys.executable, "-m", "tests.reference.measured_memory", "make", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_loading_takes_what_was_planned(checkpoint: Path, scheme: str) -> None:
    found, planned = measured("load", checkpoint, scheme), loading_bytes(toy(), SCHEMES[scheme])
    print(f"load {scheme}: {planned / found['added'] - 1:+.1%}")
    assert planned == pytest.approx(found["added"], rel=ERROR)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "batch", "context"), SERVED)
def test_serving_takes_what_was_planned(checkpoint: Path, scheme: str, batch: int, context: int) -> None:
    found = measured("serve", checkpoint, scheme, batch, context)
    (planned,) = serve(toy(), HERE, Serving(), Asked(context=context, batch=batch, scheme=scheme)).ranks
    print(f"serve {scheme}, {batch} x {context}: {planned.total / found['added'] - 1:+.1%}")
    assert planned.total == pytest.approx(found["added"], rel=ERROR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "row_len", "matrices", "dtype"),
    [(4, 512, "muon", "bfloat16"), (2, 2048, "adamw", "bfloat16"), (2, 2048, "adamw", "float32")],
)
def test_training_takes_what_was_planned(rows: int, row_len: int, matrices: str, dtype: str) -> None:
    """Where C++ kernels of a training step are built, they make it in bfloat16; float32 is torch's."""
    found, is_wide = measured("train", rows, row_len, matrices, dtype), dtype == "float32"
    kernels = training.available() and not is_wide
    shape = Shape(rows=rows, row_len=row_len, itemsize=4 if is_wide else 2, chunk=256, kernels=kernels)
    job = Job(config=toy(), layout=Training(), shape=shape, accumulate=1, matrices=matrices)  # type: ignore[arg-type]
    held = rank(job, Kept(toy(), job.layout, shape), 0, 0)
    planned = held.peak - held.saving
    print(f"train {rows} x {row_len}, {matrices}, {dtype}: {planned / found['added'] - 1:+.1%}")
    assert planned == pytest.approx(found["added"], rel=ERROR)
