"""The README's first hour, line by line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_line_of_the_readmes_first_hour_works_here() -> None:
    run = subprocess.run([sys.executable, "scripts/first-hour", "--here"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\nok ") + run.stdout.startswith("ok ") >= 19
