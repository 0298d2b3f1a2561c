"""Every command that the documentation shows exists as it stands there; those that take no time are run."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from puna.cli import _parser, main

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\s*(?:\$ )?(?:torchrun .*-m |\.venv/bin/)?puna (.*)")
INLINE = re.compile(r"`(?:\.venv/bin/)?puna ([a-z-]+)([^`]*)`")
CHEAP = re.compile(
    r"(params|doctor|card|plan) ?(scout|maverick|cria)?( --(json|hardware|quantize|context|task|batch) ?\S*)*"
)


class Shown(NamedTuple):
    """A command as a page shows it, without what is said about it."""

    page: str
    command: str


def shown() -> Iterator[Shown]:
    """Commands of all fenced and indented blocks. What follows two spaces or a hash is said about them."""
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line for kind, body in FENCE.findall(text) if kind in ("", "sh", "bash") for line in body.splitlines()]
        lines += [line for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
        for line in lines:
            if found := COMMAND.match(line):
                yield Shown(page.name, re.split(r"\s{2,}|\s#", found[1])[0].strip())


COMMANDS = list(dict.fromkeys(shown()))


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return _parser()


@pytest.mark.parametrize("each", COMMANDS, ids=lambda each: f"{each.page}: {each.command}")
def test_a_command_of_the_documentation_is_one(parser: argparse.ArgumentParser, each: Shown) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parser.parse_args(shlex.split(each.command))
        except SystemExit:
            pytest.fail(said.getvalue())


@pytest.mark.parametrize("command", sorted({c.command for c in COMMANDS if CHEAP.fullmatch(c.command)}))
def test_a_command_that_takes_no_time_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.strip()


def test_commands_named_in_a_sentence_have_the_options_that_it_names(parser: argparse.ArgumentParser) -> None:
    (commands,) = (each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    wrong = []
    for page in PAGES:
        for name, rest in INLINE.findall(FENCE.sub("", page.read_text("utf-8"))):
            known = commands[name]._option_string_actions if name in commands else {}
            options = re.findall(r"--[a-z][a-z-]*", rest)
            if name not in commands or any(option not in known for option in options):
                wrong.append(f"{page.name}: puna {name}{rest}")
    assert not wrong


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 50 and {page for page, _ in COMMANDS} >= {"README.md", "serve.md", "card.md", "evaluate.md"}


def test_the_tour_visits_the_whole_route() -> None:
    design = (ROOT / "DESIGN.md").read_text("utf-8")
    route = design.split("```")[1]
    stops = {f"{name}.py" for name in re.findall(r"(?:prompt|engine|model|guard)/\w+", route)}
    tour = (ROOT / "docs" / "tour.md").read_text("utf-8")
    assert len(stops) > 15 and not {stop for stop in stops if f"(../src/puna/{stop})" not in tour}
