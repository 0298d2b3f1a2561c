"""The page about peers shows figures that stand in the files it names, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "peers.md").read_text("utf-8")
ROW = re.compile(
    r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| .+? \| \[[\w-]+\]\(\.\./(bench/results/[\w.-]+)\) \|$", re.MULTILINE
)


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON document but those of single samples: medians and results."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in {"samples", "processes", "lines"}:
                yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_every_figure_stands_in_the_file_that_its_row_names() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) == PAGE.count("../bench/results/") >= 19
    wrong = []
    for what, ours, theirs, file in rows:
        known = list(numbers(json.loads((ROOT / file).read_text("utf-8"))))
        for figure in (ours, theirs):
            digits = len(figure.partition(".")[2])
            if not any(f"{number:.{digits}f}" == figure for number in known):
                wrong.append(f"{what}: {figure} is not in {file}")
    assert not wrong, wrong


def test_no_figure_with_a_unit_stands_outside_the_tables() -> None:
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    assert not re.findall(r"\d[\d.]* ?(?:tok|x faster|times faster|GiB|ms\b|%)", prose)
