"""When clients are told what has come: how many events all streams together cause in a second, at most.

In: which samples grow, and the time. Out: which of them are told now. The first token of a stream and its end are told
at once and are not counted. Between them n streams are told after n / `events_per_second` seconds each: few streams
hear of each token as it comes, many hear of several at a time. Whoever waits for a whole answer is told its first
token, for the clocks, and its end.
Not here: what is told (`chat.Session`), how it travels, pings.
"""

import math
import time
from collections.abc import Callable


class Pace:
    """Says who is due. For whoever steps the model, in one thread."""

    def __init__(self, events_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """0 sets no bound."""
        self._seconds = 1 / events_per_second if events_per_second else 0.0  # that a stream waits for each stream
        self._clock = clock
        self._now = clock()
        self._whole: set[int] = set()
        self._due: dict[tuple[int, int], float] = {}  # of the samples that were told of
        self._n_streams = 0  # among those

    def tick(self) -> None:
        """Looks at the clock, for all `is_due` until the next time."""
        self._now = self._clock()

    def wait(self, number: int) -> None:
        """Notes that the answers of a number are wanted whole."""
        self._whole.add(number)

    def is_due(self, number: int, sample: int) -> bool:
        """Says whether a sample is told what is new. Where it says yes, that counts as told."""
        key = number, sample
        due = self._due.get(key)
        if due is not None and due > self._now:
            return False
        if number in self._whole:
            self._due[key] = math.inf
        else:
            self._n_streams += due is None
            self._due[key] = self._now + self._n_streams * self._seconds
        return True

    def end(self, number: int, sample: int) -> None:
        """Counts a sample no more."""
        if self._due.pop((number, sample), None) is not None and number not in self._whole:
            self._n_streams -= 1

    def forget(self, number: int) -> None:
        """Forgets a number all of whose samples have ended."""
        self._whole.discard(number)
