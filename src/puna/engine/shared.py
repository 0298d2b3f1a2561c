"""One engine for several users, so that they share its blocks, its batches and what it remembers.

In: what an engine takes, from any thread. Out: to each `Share` the events of its own requests, whoever made the engine
step. A share that nobody holds any more ends its requests.
Not here: when to step. Each share steps as if the engine were its own; a step works for all.
"""

import threading
import weakref
from collections import deque
from dataclasses import dataclass, field

from puna.engine.engine import Engine
from puna.engine.request import Event, Request


@dataclass(slots=True, eq=False)
class _Inbox:
    """What a share has coming: events, samples of its requests whose end it has not seen, and what went wrong."""

    events: deque[Event] = field(default_factory=deque)
    open: dict[int, set[int]] = field(default_factory=dict)
    failure: Exception | None = None


class SharedEngine:
    """An engine and its users. Give it an engine that nobody else steps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.RLock()
        self._inboxes: dict[int, _Inbox] = {}  # by request
        self._left: deque[int] = deque()  # requests of shares that are gone

    def open(self) -> "Share":
        """Returns a share for one user."""
        return Share(self)

    # For shares -------------------------------------------------------------------------------------------------------

    def _add(self, inbox: _Inbox, request: Request) -> int:
        with self._lock:
            self._sweep()
            number = self.engine.add(request)
            self._inboxes[number] = inbox
            inbox.open[number] = set(range(request.n))
            return number

    def _step(self, inbox: _Inbox) -> list[Event]:
        with self._lock:
            self._sweep()
            if not inbox.events and inbox.failure is None and inbox.open:
                self._run()
            if inbox.failure is not None:
                failure, inbox.failure = inbox.failure, None
                raise failure
            events = list(inbox.events)
            inbox.events.clear()
            for event in events:
                if event.finish is not None:
                    self._close(inbox, event.request_id, event.sample)
            return events

    def _abort(self, inbox: _Inbox, number: int, sample: int | None) -> list[Event]:
        with self._lock:
            self.engine.abort(number, sample)
            gone = sorted(i for i in inbox.open.get(number, ()) if sample in (None, i))
            inbox.events = deque(e for e in inbox.events if e.request_id != number or e.sample not in gone)
            for i in gone:
                self._close(inbox, number, i)
            return [Event(number, i, None, None, "abort") for i in gone]

    def _count(self, inbox: _Inbox, samples: list[tuple[int, int]]) -> int:
        return sum(number in inbox.open for number, _ in samples)

    def _run(self) -> None:
        """Steps the engine for everybody."""
        try:
            events = self.engine.step()
        except Exception as error:
            self._fail(error)
            return
        for event in events:
            self._inboxes[event.request_id].events.append(event)

    def _fail(self, error: Exception) -> None:
        """Ends all requests of those whose samples a failed step took with it, who will be told."""
        left = {*self.engine.running, *self.engine.waiting}
        for inbox in {id(each): each for each in self._inboxes.values()}.values():
            left |= {(event.request_id, event.sample) for event in inbox.events if event.finish is not None}
            if all((number, sample) in left for number, samples in inbox.open.items() for sample in samples):
                continue
            inbox.failure = error
            for number in inbox.open:
                self.engine.abort(number)
                self._inboxes.pop(number, None)
            inbox.events.clear()
            inbox.open.clear()

    def _close(self, inbox: _Inbox, number: int, sample: int) -> None:
        inbox.open[number].discard(sample)
        if not inbox.open[number]:
            del inbox.open[number]
            self._inboxes.pop(number, None)

    def _sweep(self) -> None:
        """Ends the requests of shares that are gone."""
        while self._left:
            number = self._left.popleft()
            self.engine.abort(number)
            self._inboxes.pop(number, None)


class Share:
    """What one user sees of a shared engine: the same calls, and only its own requests."""

    def __init__(self, shared: SharedEngine) -> None:
        self._shared = shared
        self._inbox = _Inbox()
        # It may run at any time and in any thread, so it only leaves word.
        weakref.finalize(self, _leave, shared._left, self._inbox.open)

    @property
    def n_waiting(self) -> int:
        """Own samples that have not begun, or had to make room."""
        return self._shared._count(self._inbox, self._shared.engine.waiting)

    @property
    def n_running(self) -> int:
        """Own samples that have begun."""
        return self._shared._count(self._inbox, self._shared.engine.running)

    @property
    def running(self) -> list[tuple[int, int]]:
        """Own samples (request id, number) that have begun."""
        return [sample for sample in self._shared.engine.running if sample[0] in self._inbox.open]

    @property
    def is_idle(self) -> bool:
        """Says whether no event can come any more."""
        return not self._inbox.open and self._inbox.failure is None

    def add(self, request: Request) -> int:
        """Queues a request and returns its id. Raises PromptError or CapacityError when this model cannot run it."""
        return self._shared._add(self._inbox, request)

    def step(self) -> list[Event]:
        """Returns own events that are there, or steps the engine to get some, which may give none.

        Raises what a step stumbled over that had an own sample in it; all own requests are over then.
        """
        return self._shared._step(self._inbox)

    def abort(self, request_id: int, sample: int | None = None) -> list[Event]:
        """Ends all samples of an own request, or the one numbered `sample`; no further event of them comes.

        Returns an event for each whose end was not reported yet.
        """
        return self._shared._abort(self._inbox, request_id, sample)


def _leave(left: deque[int], open_requests: dict[int, set[int]]) -> None:
    left.extend(open_requests)
