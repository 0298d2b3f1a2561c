"""What the documentation shows is what works: each command of docs/serve.md is run as it stands there."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.route.test_cria import pytestmark as needs_cria

ROOT = Path(__file__).parents[2]
SERVE, *COMMANDS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"

pytestmark = [needs_cria, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Starts the server with the page's own command, at a free port."""
    _, *arguments = SERVE.split()
    command = [sys.executable, "-m", "puna", *arguments, "--device", "cpu", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"].removesuffix("/v1")
        process.terminate()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("8000")[1].split()[0].strip("'"))
def test_the_command_answers(address: str, command: str) -> None:
    asked = command.replace(ADDRESS, address).replace("curl ", "curl -sS --fail-with-body ", 1)
    run = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"error": {' not in run.stdout and run.stdout.strip()
    if "/metrics" not in command and "-N" not in command:
        json.loads(run.stdout)
