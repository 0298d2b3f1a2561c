"""Graders and harnesses that others wrote, kept in an environment of their own beside the tests' one, whose packages it
sees: what they bring along must not change what is tested.

    python -m tests.reference.referees        makes it, once: lm-evaluation-harness and four packages of graders

A test asks one of the scripts beside this file a question in JSON; without the environment it is skipped visibly.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".referees"
PYTHON = HOME / "bin" / "python"
WANTED = Path(__file__).with_name("referees.txt")


def ask(script: str, **question: Any) -> Any:
    """Returns what `tests/reference/SCRIPT.py` answers there, JSON for JSON. Skips the test where it cannot run."""
    if not PYTHON.exists():
        pytest.skip("needs the graders of others: make them with python -m tests.reference.referees")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [PYTHON, "-m", f"tests.reference.{script}"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode:
        raise AssertionError(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make() -> None:
    """Makes the environment: empty, then with the tests' packages in sight, then with what `referees.txt` names."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
    (site,) = HOME.glob("lib/python*/site-packages")
    mine = sysconfig.get_paths()["purelib"]
    (site / "tests.pth").write_text(f"import site; site.addsitedir({mine!r})\n", encoding="utf-8")
    lines = [line for line in WANTED.read_text("utf-8").splitlines() if not line.startswith("#")]
    whole, bare = ([line.split()[0] for line in lines if ("no-deps" in line) is alone] for alone in (False, True))
    pip = [PYTHON, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *whole], check=True)
    subprocess.run([*pip, "--no-deps", *bare], check=True)


if __name__ == "__main__":
    make()
