"""What a run's folder has to tell: the lines of its log that a reader has not seen, its energy, and how it stands.

In: the folder of a run. Out: JSON values. Reading changes nothing, so a run may be watched from anywhere that sees its
files. A resumed run writes its log anew from its checkpoint on (`loop`): readers are told to begin again.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import ConfigError
from puna.records import ENERGY, read_energy
from puna.train.loop import LOG
from puna.train.samples import SAMPLES
from puna.train.watch.work import WORK

MOST_LINES = 4000
"""Of one answer. Of more, every second, fourth, ... line is told, and the last one."""

MOST_SAMPLED = 8
"""Steps whose samples are told."""

PATIENCE_SECONDS = 60.0
"""A run whose last step is so long ago, besides five steps' time, is not taken for a running one."""


class Place(NamedTuple):
    """How far a reader is: `offset` bytes into the log that is file number `file`."""

    file: int = 0
    offset: int = 0


def check(run: Path) -> None:
    """Raises ConfigError when there is no run in a folder."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; name that of a run, which puna train makes, such as runs/cria")


def news(run: Path, place: Place) -> dict[str, Any]:
    """Returns what is new since `place`, which the next call is to be given as the answer has it.

    Keys: name; state ("waiting" before the first step, "running", "still" or "finished"); place; is_new: whether steps
    begin anew; steps: lines of the log; energy: a line for each start; held_out: bits per byte, or null;
    work: what utilisation is out of (`work`), or null; samples: lines of what the weights wrote, the newest first.
    """
    check(run)
    log = run / LOG
    steps, now, is_new = _lines(log, place) if log.is_file() else ([], Place(), place != Place())
    last = steps[-1] if steps else _last(log)
    return {
        "name": run.resolve().name,
        "state": _state(log, last),
        "place": now._asdict(),
        "is_new": is_new,
        "steps": steps,
        "energy": [asdict(record) for record in read_energy(run / ENERGY)],
        "held_out": _held_out(run / "held_out.json"),
        "samples": _samples(run / SAMPLES),
        "work": json.loads((run / WORK).read_text("utf-8")) if (run / WORK).is_file() else None,
    }


def _lines(log: Path, place: Place) -> tuple[list[dict[str, Any]], Place, bool]:
    """Returns the whole lines behind a place, thinned out where they are many, the place behind them, and whether they
    begin at the first."""
    with log.open("rb") as file:
        number = os.fstat(file.fileno()).st_ino
        is_new = number != place.file or place.offset > os.fstat(file.fileno()).st_size
        offset = 0 if is_new else place.offset
        file.seek(offset)
        kept, last, every = [], b"", 1
        for count, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            offset, last = offset + len(line), line
            if count % every == 0:
                kept.append(line)
            if len(kept) > MOST_LINES:
                kept, every = kept[::2], every * 2
    if kept and kept[-1] is not last:
        kept.append(last)
    return [_parsed(line) for line in kept], Place(number, offset), is_new


def _last(log: Path) -> dict[str, Any] | None:
    """Returns the last whole line of a log, None where there is none."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**16))
        lines = [line for line in file if line.endswith(b"\n")]
    return _parsed(lines[-1]) if lines else None


def _parsed(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line, parse_constant=lambda name: None)  # NaN is no JSON
    return found


def _state(log: Path, last: dict[str, Any] | None) -> str:
    if last is None:
        return "waiting"
    if last["step"] == last.get("steps"):
        return "finished"
    quiet = time.time() - log.stat().st_mtime
    return "running" if quiet < PATIENCE_SECONDS + 5 * last["seconds"] else "still"


def _samples(file: Path) -> list[dict[str, Any]]:
    """Returns the samples of the last steps that have some, the newest first."""
    if not file.is_file():
        return []
    lines = [_parsed(line) for line in file.read_bytes().splitlines()]
    steps = sorted({line["step"] for line in lines}, reverse=True)[:MOST_SAMPLED]
    return sorted((line for line in lines if line["step"] in steps), key=lambda line: -line["step"])


def _held_out(file: Path) -> dict[str, float] | None:
    if not file.is_file():
        return None
    return {name: scores["bits_per_byte"] for name, scores in json.loads(file.read_text("utf-8")).items()}
