"""What the documentation shows is what works: each command of docs/serve.md is run as it stands there."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna import cli
from puna.chat import load
from tests.route.test_cria import pytestmark as needs_cria
from tests.serve.conftest import Running

ROOT = Path(__file__).parents[2]
SERVE, *COMMANDS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"

pytestmark = [needs_cria, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where what the first command starts is to be found; that the command itself serves is shown in test_app."""
    name, arguments = SERVE.split()[:2], cli._parser().parse_args(SERVE.split()[1:])
    assert (name, arguments.model) == (["puna", "serve"], None)
    server = Running(load("cria", device="cpu"), model=arguments.name)
    yield server.url
    server.stop()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("8000")[1].split()[0].strip("'"))
def test_the_command_answers(address: str, command: str) -> None:
    asked = command.replace(ADDRESS, address).replace("curl ", "curl -sS --fail-with-body ", 1)
    run = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"error": {' not in run.stdout and run.stdout.strip()
    if "/metrics" not in command and "-N" not in command:
        json.loads(run.stdout)
