"""Each command of docs/train.md is one that works: plans are made, runs are planned, and the page's command is read."""

import re
import shlex
from pathlib import Path

import pytest

from puna import cli
from puna.train.recipe import read

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "train.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
RUNS = [c for c in COMMANDS if "train watch" not in c and not c.startswith("puna haystack")]
LARGE = re.compile("scout|maverick")


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow) if LARGE.search(c) else c for c in RUNS],
)
def test_a_run_of_the_page_can_be_planned(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    starter, arguments = re.split(r"-m puna |^puna ", command, maxsplit=1)
    words = shlex.split(arguments)
    assert cli.main([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    assert "parameters" in capsys.readouterr().out
    if starter:
        assert starter.split() == ["torchrun", "--nproc-per-node", str(read(words[1]).parallel.world)]


def test_the_command_of_the_page_names_a_run_and_a_port() -> None:
    (command,) = (c for c in COMMANDS if "train watch" in c)
    arguments = cli._parser().parse_args(shlex.split(command)[1:])
    assert (str(arguments.recipe), str(arguments.watched), arguments.port) == ("watch", "runs/cria", 8090)


def test_the_command_of_the_page_makes_long_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (c for c in COMMANDS if c.startswith("puna haystack"))
    (tmp_path / "texts").symlink_to(ROOT / "docs")
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "model").symlink_to(ROOT / "src" / "puna" / "assets" / "cria")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*shlex.split(command)[1:], "--documents", "1"]) == 0
    assert len((tmp_path / "corpus" / "long.jsonl").read_text("utf-8").splitlines()) == 3
