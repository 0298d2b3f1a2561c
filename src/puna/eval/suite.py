"""Several tasks on one model, in one folder: what `puna eval` does.

In: tasks by name or a suite, a model, data, a folder for the run. Out: reports and records, and in the folder what
`record` says and

    results.json             the evaluations, as the card reads them
    report.md, report.html   the tables
    TASK.html                the items, to look at
    TASK.md                  for long contexts, the results by length and depth
    TASK.submission.json     for sets whose answers are hidden

In a suite a row whose data is not at hand does not stop the others: it runs on stand-ins of our own, and says so. A
task that was asked for by name must have its data.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import ConfigError, PunaError
from puna.eval import own
from puna.eval.ask import Model
from puna.eval.metrics import check_extras
from puna.eval.record import Folder
from puna.eval.report import markdown, page
from puna.eval.result import Circumstances, evaluation
from puna.eval.run import Progress, Settings, fitted, items_of, run_items, spread
from puna.eval.task import Item, Report, Task, measured, pick_responses, score_items
from puna.eval.tasks import BASE, CHAT, LONG_CONTEXT, TASKS
from puna.eval.tasks.docvqa import submission
from puna.eval.tasks.haystack import by_length_and_depth
from puna.eval.tasks.math import maj_at
from puna.eval.viewer import viewer
from puna.records import RESULTS, Evaluation, read_evaluations, write_evaluations

SUITES: Mapping[str, tuple[str, ...]] = {
    "card": tuple(task.name for task in (*BASE, *CHAT)),
    "base": tuple(task.name for task in BASE),
    "chat": tuple(task.name for task in CHAT),
}
"""Task names by suite: all rows of the card, and those of each of its tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks, and the settings they are run with. `is_named`: each was asked for by name."""

    tasks: tuple[Task, ...]
    settings: Settings
    is_named: bool


class Outcome(NamedTuple):
    """A task's record, and its report where it ran."""

    evaluation: Evaluation
    report: Report | None

    def to_json(self) -> dict[str, Any]:
        """Returns what --json says of a task: the record, and every item."""
        return self.evaluation.to_json() | (self.report.to_json() if self.report else {"items": []})


def circumstances(model: Model, model_hash: str, settings: Settings) -> Circumstances:
    """Returns who answers, when, and in what setting."""
    shared = {"limit": settings.limit, "seed": settings.seed, "numbers": model.identity.get("numbers")}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Circumstances(model=model.name, model_hash=model_hash, date=date, settings=shared)


def recorded(name: str, settings: Settings) -> Circumstances:
    """Returns the circumstances of answers that somebody recorded."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Circumstances(model=name, model_hash="", date=date, settings={"limit": settings.limit})


def default_folder(model: Model) -> Path:
    """Returns where a model's runs are kept when nobody says where: always the same for the same model."""
    digest = hashlib.sha256(json.dumps({"name": model.name, **model.identity}, sort_keys=True).encode()).hexdigest()
    return Path("runs", "eval", f"{model.name.replace('/', '-')}-{digest[:8]}")


def tasks_named(names: str) -> tuple[Task, ...]:
    """Returns tasks from their names with commas between; math_maj16 is MATH with the majority of 16 samples.

    Raises ConfigError for an unknown one.
    """
    return tuple(_task(name.strip(), "--task") for name in names.split(","))


def read_suite(name: str, settings: Settings) -> Suite:
    """Returns a suite by its name, or from a TOML file with `tasks` and, if it likes, fields of `Settings`.

    What `settings` say goes before what the file says. Raises ConfigError for an unknown name, task or field.
    """
    if name in SUITES:
        return Suite(tasks=tuple(TASKS[task] for task in SUITES[name]), settings=settings, is_named=False)
    if not name.endswith(".toml"):
        raise ConfigError(f"--suite is {name!r}: give one of {', '.join(SUITES)}, or a file that ends with .toml")
    try:
        document = tomllib.loads(Path(name).read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--suite {name}: is not TOML ({error}); correct it") from error
    names = document.pop("tasks", [])
    known = set(Settings.__dataclass_fields__)
    is_list = isinstance(names, list) and all(isinstance(each, str) for each in names)
    if not names or not is_list or not known.issuperset(document):
        raise ConfigError(
            f"--suite {name}: has `tasks`, a list of names, and of {', '.join(sorted(known))} what it likes"
        )
    if not all(isinstance(number, int) for number in document.values()):
        raise ConfigError(f"--suite {name}: {', '.join(document)} are whole numbers")
    given = {field: value for field in known if (value := getattr(settings, field)) != getattr(Settings(), field)}
    tasks = tuple(_task(each, f"--suite {name}") for each in names)
    return Suite(tasks=tasks, settings=Settings(**{**document, **given}), is_named=True)


def _task(name: str, where: str) -> Task:
    if samples := re.fullmatch(r"math_maj([1-9]\d{0,3})", name):
        return maj_at(int(samples[1]))
    if name not in TASKS:
        raise ConfigError(f"{where} names {name!r}: there is no such task; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]


def run_suite(
    suite: Suite,
    model: Model,
    data: Sequence[Path],
    folder: Folder,
    circumstances: Circumstances,
    progress: Progress,
) -> list[Outcome]:
    """Returns what came of each task, and writes the run's files.

    Raises ConfigError when no task has data, DeviceError when a package lacks that judges one.
    """
    check_extras(task.name for task in suite.tasks)
    outcomes: list[Outcome] = []
    stand_ins = cache(lambda: own.write(folder.path / "own"))
    if suite.is_named and data:
        for task in suite.tasks:
            items_of(fitted(task, model), data)  # what has no data is said before anything runs
    for task in suite.tasks:
        found = _find(fitted(task, model), data, stand_ins, suite.is_named)
        report = _run(found, model, suite.settings, folder, progress)
        record = evaluation(
            found.task,
            report,
            settings=suite.settings,
            circumstances=circumstances,
            data=found.where,
            is_own=found.where == OWN,
            problem=found.problem,
        )
        outcomes.append(Outcome(record, report))
        outcomes += _also(found.task, report, suite.settings, circumstances, found.where)
        _write(outcomes, found.task, report, folder)
    if not any(each.report for each in outcomes):
        raise ConfigError(f"data: no task of the suite has any: {outcomes[0].evaluation.differences[0]}")
    return outcomes


OWN = "own stand-ins"


class _Found(NamedTuple):
    """A task with its items, and where these are ("": nowhere); `problem` says why they are not the real ones."""

    task: Task
    items: list[Item]
    where: str
    problem: str = ""


def _find(task: Task, data: Sequence[Path], stand_ins: Callable[[], Mapping[str, Path]], is_named: bool) -> _Found:
    try:
        return _Found(task, items_of(task, data), _where(data))
    except PunaError as error:
        if is_named:
            raise
        if folder := stand_ins().get(task.name):
            return _Found(task, items_of(task, folder), OWN, str(error))
        return _Found(task, [], "", str(error))


def _where(data: Sequence[Path]) -> str:
    """Returns what a report says of the data: the folders by their last names, which is all that others can know."""
    return f"folder {', '.join(folder.resolve().name for folder in data)}" if data else "hub"


def _run(found: _Found, model: Model, settings: Settings, folder: Folder, progress: Progress) -> Report | None:
    if not found.where:
        return None
    lines = folder.lines(found.task.name)
    if lines.repaired:
        progress(f"{lines.path}: the last line was torn; {lines.repaired} bytes are cut off")
    try:
        return run_items(found.task, found.items, model, settings, lines=lines, progress=progress)
    finally:
        lines.close()


def score_file(
    tasks: Sequence[Task],
    path: Path,
    data: Sequence[Path],
    settings: Settings,
    circumstances: Circumstances,
) -> list[Outcome]:
    """Returns what recorded responses are worth, by task; no model is asked. `limit` takes the first answered items.

    Raises ConfigError for broken lines, unknown items, or a task without data.
    """
    outcomes = []
    for task in tasks:
        items = items_of(task, data)
        responses = pick_responses(task, path, items)
        if settings.limit is not None:
            answered = [item for item in items if item.id in responses]
            items = spread(answered, settings.limit)
            responses = {item.id: responses[item.id] for item in items}
        report = score_items(task, items, responses)
        record = evaluation(task, report, settings=settings, circumstances=circumstances, data=_where(data))
        outcomes.append(Outcome(record, report))
        outcomes += _also(task, report, settings, circumstances, _where(data))
    return outcomes


def _also(
    task: Task, report: Report | None, settings: Settings, circumstances: Circumstances, data: str
) -> Iterator[Outcome]:
    """Yields what else a task's responses show."""
    for each, found in measured(task, report) if report else ():
        record = evaluation(each, found, settings=settings, circumstances=circumstances, data=data)
        yield Outcome(record, found)


def _write(outcomes: Sequence[Outcome], task: Task, report: Report | None, folder: Folder) -> None:
    """Writes records and tables of all that has run in this folder, and a page of the newest task's items."""
    if report is not None:
        folder.write(f"{report.task}.html", viewer(task, report))
        if report.task in {each.name for each in LONG_CONTEXT}:
            folder.write(f"{report.task}.md", by_length_and_depth(report.groups))
        answered = {each.item.id: each.responses for each in report.judged if each.responses}
        if report.task == "docvqa_test" and answered:
            folder.write("docvqa_test.submission.json", json.dumps(submission(answered), ensure_ascii=False) + "\n")
    evaluations = _all_of(folder, [each.evaluation for each in outcomes])
    folder.write(RESULTS, write_evaluations(evaluations))
    folder.write("report.md", markdown(evaluations))
    pages = [each.task for each in evaluations if (folder.path / f"{each.task}.html").exists()]
    folder.write("report.html", page(evaluations, pages))


def _all_of(folder: Folder, new: Sequence[Evaluation]) -> list[Evaluation]:
    """Returns the evaluations of earlier commands in this folder with the new ones in their places, or behind them."""
    path = folder.path / RESULTS
    try:
        known = read_evaluations(path) if path.exists() else ()
    except ConfigError:  # of another version of puna; it holds nothing that the records do not
        known = ()
    return list(({each.task: each for each in known} | {each.task: each for each in new}).values())
