"""Tasks on streams, run through by events: what a cluster does in a step, second by second.

In: tasks, each on a stream (arithmetic of a stage, one of its links), which does one after the other in the order in
which they are listed, each not before what it waits for. Out: when each began and ended. Nothing here knows what a task
is; `pipeline` makes those of a training step, and the page draws them.
"""

import heapq
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Task(NamedTuple):
    """Work of so many seconds on a stream, after other tasks, by their places in the list. `kind` is for drawings."""

    stream: Hashable
    seconds: float
    kind: str
    after: tuple[int, ...] = ()


class Span(NamedTuple):
    """When a task ran, in seconds from the start."""

    start: float
    end: float


@dataclass(slots=True)
class Tasks:
    """A list of tasks that is being made; `add` returns the place of the new one, for those that wait for it."""

    tasks: list[Task]

    def add(self, stream: Hashable, seconds: float, kind: str, after: Iterable[int | None] = ()) -> int:
        """Adds a task; a None among `after` is nothing to wait for."""
        waits = tuple(each for each in after if each is not None)
        self.tasks.append(Task(stream, seconds, kind, waits))
        return len(self.tasks) - 1


def run(tasks: list[Task]) -> list[Span]:
    """Returns when each task ran. Streams that wait for each other forever are a fault of whoever made the tasks."""
    queues: dict[Hashable, list[int]] = {}
    for number, task in enumerate(tasks):
        queues.setdefault(task.stream, []).append(number)
    waiting = [len(task.after) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for earlier in task.after:
            followers[earlier].append(number)
    heads = dict.fromkeys(queues, 0)
    busy: set[Hashable] = set()
    spans = [Span(0.0, 0.0)] * len(tasks)
    events: list[tuple[float, int]] = []

    def begin(stream: Hashable, now: float) -> None:
        queue, head = queues[stream], heads[stream]
        if stream in busy or head == len(queue) or waiting[queue[head]]:
            return
        number = queue[head]
        heads[stream] += 1
        busy.add(stream)
        spans[number] = Span(now, now + tasks[number].seconds)
        heapq.heappush(events, (spans[number].end, number))

    for stream in queues:
        begin(stream, 0.0)
    n_done = 0
    while events:
        now, number = heapq.heappop(events)
        n_done += 1
        busy.discard(tasks[number].stream)
        for follower in followers[number]:
            waiting[follower] -= 1
        for stream in [tasks[number].stream, *(tasks[each].stream for each in followers[number])]:
            begin(stream, now)
    assert n_done == len(tasks), "streams wait for each other"
    return spans


def length(spans: list[Span]) -> float:
    """Returns when the last task ended."""
    return max((span.end for span in spans), default=0.0)


def busy_seconds(tasks: list[Task], spans: list[Span]) -> dict[Hashable, float]:
    """Returns for how long each stream worked."""
    found: dict[Hashable, float] = {}
    for task, span in zip(tasks, spans, strict=True):
        found[task.stream] = found.get(task.stream, 0.0) + span.end - span.start
    return found
