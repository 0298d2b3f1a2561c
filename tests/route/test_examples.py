"""Every example is short and runs as a newcomer would run it, with the model that ships."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import puna

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
CRIA = Path(puna.__file__).parent / "assets" / "cria"
MOST_LINES = 40


@pytest.fixture(autouse=True)
def deterministic_only_here() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_says_something(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if 'load("cria")' in path.read_text("utf-8") and not list(CRIA.glob("*.safetensors")):
        pytest.skip("the weights of cria are not in src/puna/assets/cria")
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) < MOST_LINES and lines[0].startswith('"""')
