"""A report and its circumstances as a record: how sure the value is, and what it must not be compared with.

In: a task's report, and how it was run. Out: an `Evaluation`, as the card and the tables here read it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna import __version__
from puna.eval.metrics import Z_95, Estimate, interval
from puna.eval.published import COLUMNS, ROW_OF, Row
from puna.eval.run import Settings
from puna.eval.task import Report, Task
from puna.records import Evaluation

WHOLE_BYTES = 64 * 2**20  # files up to here are hashed whole
MAX_CLAUSE_CHARS = 90  # of a refusal within a table
PIECE_BYTES = 4 * 2**20  # of larger ones, at beginning, middle and end


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Who answered, when, and in what setting. `model_hash` is "" where nobody has the files."""

    model: str
    model_hash: str
    date: str
    settings: Mapping[str, Any]


def evaluation(
    task: Task,
    report: Report | None,
    *,
    settings: Settings,
    circumstances: Circumstances,
    data: str,
    is_own: bool = False,
    problem: str = "",
) -> Evaluation:
    """Returns the record of a task; `report` is None where it did not run, and `problem` says why.

    `data` says where the items came from ("hub", or a folder); `is_own`: they are stand-ins of our own.
    """
    row = ROW_OF.get(task.name)
    score, stderr = (report.score, report.stderr) if report else (None, None)
    low, high = _interval(report)
    return Evaluation(
        task=task.name,
        benchmark=row.benchmark if row else task.name,
        table=row.table if row else "",
        shots=task.shots,
        metric=task.metric,
        unit=task.unit,
        best=task.best,
        score=score,
        stderr=stderr,
        low=low,
        high=high,
        n=report.n if report else 0,
        unscored=report.unscored if report else 0,
        n_published=row.n if row else None,
        chance=task.chance,
        at_chance=low is not None and task.unit == "share" and low <= task.chance,
        differences=tuple(_differences(task, report, row, settings, data, is_own, problem)),
        notes=(row.note,) if row and row.note else (),
        published=_published(task, row),
        model=circumstances.model,
        model_hash=circumstances.model_hash,
        settings={
            **circumstances.settings,
            "max_new_tokens": min(task.max_new_tokens, settings.max_new_tokens or task.max_new_tokens),
            "temperature": task.temperature,
            "samples": task.samples,
        },
        data=data,
        date=circumstances.date,
        version=__version__,
    )


def files_hash(directory: Path) -> str:
    """Returns a short name of a checkpoint: of its weights, configuration and tokenizer, wherever they lie.

    Of files above 64 MiB only size, beginning, middle and end are read, so that this takes no time; an edit that keeps
    all of them is not seen.
    """
    digest = hashlib.sha256()
    kinds = {".safetensors", ".pth", ".bin", ".json", ".model"}
    for path in sorted(each for each in directory.iterdir() if each.suffix in kinds and each.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            starts = (0,) if size <= WHOLE_BYTES else (0, size // 2, size - PIECE_BYTES)
            for start in starts:
                file.seek(start)
                digest.update(file.read(WHOLE_BYTES if size <= WHOLE_BYTES else PIECE_BYTES))
    return digest.hexdigest()[:16]


def _interval(report: Report | None) -> tuple[float | None, float | None]:
    if report is None or report.score is None:
        return None, None
    if report.unit == "share":
        return interval(Estimate(value=report.score, stderr=report.stderr, n=report.n))
    if report.stderr is None:
        return None, None
    return report.score - Z_95 * report.stderr, report.score + Z_95 * report.stderr


def _differences(
    task: Task, report: Report | None, row: Row | None, settings: Settings, data: str, is_own: bool, problem: str
) -> Iterator[str]:
    """Yields why a value must not be compared with the card's."""
    if is_own:
        yield f"stand-ins of our own, since {_clause(problem)}"
    elif problem:
        yield problem
    if report is None:
        return
    if row is not None and not is_own:
        n = len(report.judged)
        if row.n is not None and n != row.n:
            yield f"{n:,} of {row.n:,} items"
        if row.n is None and settings.limit is not None:
            yield f"{n:,} items only"
        if data != "hub" and row.from_folder:
            yield row.from_folder
    yield from dict.fromkeys(each.item.note for each in report.judged if each.item.note)
    refused = [each for each in report.judged if not each.responses]
    if refused:
        yield f"{len(refused)} items could not be asked: {_clause(refused[0].score.reason)}"
    if settings.max_new_tokens is not None and settings.max_new_tokens < task.max_new_tokens:
        yield f"answers of at most {settings.max_new_tokens} tokens instead of {task.max_new_tokens}"
    cuts = [details["cut_at"] for each in report.judged for details in each.details if "cut_at" in details]
    if cuts:
        yield f"{len(cuts)} answers were cut by the context, the shortest after {min(cuts)} tokens"


def _clause(reason: str) -> str:
    """Returns what a refusal says, without the remedy behind it."""
    text = reason.removeprefix("not asked: ").removeprefix("data: ").split("; ")[0]
    return text if len(text) <= MAX_CLAUSE_CHARS else text[: MAX_CLAUSE_CHARS - 1] + "…"


def _published(task: Task, row: Row | None) -> dict[str, str]:
    """Returns the card's values for this task alone: of two behind one another, its own."""
    if row is None:
        return {}
    place = row.tasks.index(task.name)
    values = [value.split("/")[place] if "/" in value else value for value in row.values]
    return {model: value for model, value in zip(COLUMNS[row.table], values, strict=True) if value}
