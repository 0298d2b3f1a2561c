"""Runs tasks on a model: asks what has no record yet, judges, records, and reports.

In: tasks, a model, folders of data. Out: a `Report` for each task. Prompts that begin alike are asked one after the
other, so that a model which remembers prefixes reads the shared shots once. Neither that order nor the batch changes a
result: items are reported in the order of the data, and each is asked by itself.
Not here: tables, and who the model is.
"""

import hashlib
import os
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from puna.eval.ask import Model, Question, Reply
from puna.eval.record import Line, Lines, fingerprint
from puna.eval.task import (
    Chat,
    Choice,
    Compare,
    Completion,
    Item,
    Judged,
    NoDataError,
    Passage,
    Prompt,
    Report,
    Score,
    Task,
    judge,
    summarize,
)

Progress = Callable[[str], None]
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How tasks are run. None leaves what the task says.

    limit           items of each task, taken in turn from its groups
    seed            of random answers, which tasks with several samples have
    max_new_tokens  instead of the task's own, if that is longer
    """

    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None


def run_task(
    task: Task,
    model: Model,
    data: Path | Sequence[Path] | None,
    settings: Settings | None = None,
    *,
    lines: Lines | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Returns the report of a task on a model. `data`: folders that may have its files, or None for the hub.

    Raises ConfigError when there is no data; otherwise as `run_items`.
    """
    task = fitted(task, model)
    return run_items(task, items_of(task, data), model, settings or Settings(), lines=lines, progress=progress)


def run_items(
    task: Task,
    items: Sequence[Item],
    model: Model,
    settings: Settings,
    *,
    lines: Lines | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Returns the report of a task on those of its items that the settings leave.

    What `lines` have is not asked again, what is new is added to them. Raises ConfigError where they do not belong to
    these items, and whatever ends the model.
    """
    items = spread(items, settings.limit)
    judged: dict[str, Judged] = {}
    asked: dict[str, _Asked] = {}
    for item in items:
        question = ask(task, item, settings)
        each = _Asked(item, question, fingerprint(question))
        line = lines.find(item, each.fingerprint) if lines else None
        if line is None:
            asked[item.id] = each
        else:
            judged[item.id] = line.judged(item)
    if judged:
        progress(f"{task.name}: {len(judged)} of {len(items)} items are there already")
    show = _Shown(task, len(items), progress)
    questions = sorted((each.question for each in asked.values()), key=lambda question: reading_order(question.prompt))
    for each, replies, result in _judged(task, asked, model.answers(questions)):
        judged[each.item.id] = result
        if lines:
            lines.add(Line.of(result, each.fingerprint, replies))
        show(judged, is_last=len(judged) == len(items))
    return summarize(task, [judged[item.id] for item in items])


def fitted(task: Task, model: Model) -> Task:
    """Returns the task as it is for this model."""
    return task.fit(model) if task.fit else task


def items_of(task: Task, data: Path | Sequence[Path] | None) -> list[Item]:
    """Returns a task's items from the first of the folders that has them, or from the hub when there is none."""
    folders = [data] if isinstance(data, Path) else list(data or ())
    missing: NoDataError | None = None
    for folder in folders:
        try:
            return list(task.items(folder))
        except NoDataError as error:
            missing = missing or error
    if missing is not None:
        raise missing
    return list(task.items(None))


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Returns `limit` items: the first of each group, then the second, and so on; in the order of the data."""
    if limit is None or limit >= len(items):
        return list(items)
    rounds: dict[str, int] = defaultdict(int)
    turns = []
    for place, item in enumerate(items):
        turns.append((rounds[item.group], place))
        rounds[item.group] += 1
    return [items[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def ask(task: Task, item: Item, settings: Settings) -> Question:
    """Returns the question for an item. Random answers get a seed of their own, from the run's seed and the item."""
    seed = 0
    if task.temperature > 0:
        text = f"{settings.seed}/{task.name}/{item.id}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    return Question(
        key=item.id,
        prompt=task.prompt(item),
        n=task.samples,
        max_new_tokens=min(task.max_new_tokens, settings.max_new_tokens or task.max_new_tokens),
        temperature=task.temperature,
        seed=seed,
    )


def reading_order(prompt: Prompt) -> str:
    """Returns what to sort prompts by, so that those which begin alike come one after the other."""
    match prompt:
        case Completion(text=text) | Choice(text=text) | Passage(text=text) | Compare(text=text):
            return text
        case Chat(messages=messages):
            return repr(messages)


# Judging ----------------------------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    item: Item
    question: Question
    fingerprint: str


def _judged(
    task: Task, asked: dict[str, _Asked], answers: Iterator[tuple[Question, tuple[Reply, ...]]]
) -> Iterator[tuple[_Asked, tuple[Reply, ...], Judged]]:
    """Yields what was answered with its worth. Programs run beside the model, as many as there are processors."""
    if not task.has_programs:
        for question, replies in answers:
            each = asked[question.key]
            yield each, replies, _judge(task, each.item, replies)
        return
    waiting: deque[tuple[_Asked, tuple[Reply, ...], Future[Judged]]] = deque()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        stack.callback(pool.shutdown, cancel_futures=True)
        for question, replies in answers:
            each = asked[question.key]
            waiting.append((each, replies, pool.submit(_judge, task, each.item, replies)))
            while waiting and waiting[0][2].done():
                each, replies, result = waiting.popleft()
                yield each, replies, result.result()
        for each, replies, result in waiting:
            yield each, replies, result.result()


def _judge(task: Task, item: Item, replies: tuple[Reply, ...]) -> Judged:
    """Returns an item's worth; one that could not be asked has none, and the refusal as reason."""
    refusal = next((reply.refusal for reply in replies if reply.refusal), "")
    if refusal:
        return Judged(item=item, responses=(), score=Score(value=None, answer=None, reason=f"not asked: {refusal}"))
    judged = judge(task, item, [reply.text for reply in replies])
    details = tuple(reply.details for reply in replies)
    return Judged(item=item, responses=judged.responses, score=judged.score, details=details)


class _Shown:
    """Tells how far a task is, not more often than every other second, and what its value is so far."""

    def __init__(self, task: Task, n_items: int, progress: Progress) -> None:
        self._task = task
        self._n_items = n_items
        self._progress = progress
        self._told = time.monotonic()

    def __call__(self, judged: dict[str, Judged], *, is_last: bool) -> None:
        if not is_last and time.monotonic() < self._told + PROGRESS_SECONDS:
            return
        self._told = time.monotonic()
        report = summarize(self._task, list(judged.values()))
        so_far = "nothing scored yet" if report.score is None else worth(report.score, report.stderr, report.unit)
        self._progress(f"{self._task.name}: {len(judged)} of {self._n_items}, {so_far}")


def worth(value: float, stderr: float | None, unit: str) -> str:
    """Returns a value with its standard error as people read it."""
    factor, ending = (100.0, " %") if unit == "share" else (1.0, f" {unit}")
    digits = 1 if unit == "share" else 4
    error = "" if stderr is None else f" ± {stderr * factor:.{digits}f}"
    return f"{value * factor:.{digits}f}{error}{ending}"


# Checks without a model -------------------------------------------------------------------------------------------


def shuffled(task: Task, items: Sequence[Item], seed: int = 0) -> dict[str, str]:
    """Returns for each item the gold answer of another, drawn at random: what a model says that knows the form only."""
    texts = [task.gold(item) for item in items]
    random.Random(seed).shuffle(texts)
    return {item.id: text for item, text in zip(items, texts, strict=True)}
