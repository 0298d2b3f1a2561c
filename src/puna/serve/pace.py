"""When clients are told what has come: how many events all streams together cause in a second, at most.

In: which samples grow, and the time. Out: which of them are told now. The first token of a stream and its end are told
at once and are not counted. Between them n streams are told after n / `events_per_second` seconds each: few streams
hear of each token as it comes, many hear of several at a time. Whoever waits for a whole answer is told its first
token, for the clocks, and its end.
Not here: what is told (`chat.Session`), how it travels, pings.
"""

import math
import time
from collections.abc import Callable, Sequence

from puna.chat import Sample


class Pace:
    """Says who is due. For whoever steps the model, in one thread."""

    def __init__(self, events_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """0 sets no bound."""
        self._seconds = 1 / events_per_second if events_per_second else 0.0  # that a stream waits for each stream
        self._clock = clock
        self._whole: set[int] = set()
        self._due: dict[Sample, float] = {}  # of the samples that were told of
        self._n_streams = 0  # among those

    def wait(self, number: int) -> None:
        """Notes that the answers of a number are wanted whole."""
        self._whole.add(number)

    def due(self, samples: Sequence[Sample]) -> list[Sample]:
        """Returns those of some samples that are told what is new now. That counts as told."""
        now, moments = self._clock(), self._due
        due = [sample for sample in samples if moments.get(sample, now) <= now]
        for sample in due:
            if sample[0] in self._whole:
                moments[sample] = math.inf
            else:
                self._n_streams += sample not in moments
                moments[sample] = now + self._n_streams * self._seconds
        return due

    def end(self, number: int, sample: int) -> None:
        """Counts a sample no more."""
        if self._due.pop((number, sample), None) is not None and number not in self._whole:
            self._n_streams -= 1

    def forget(self, number: int) -> None:
        """Forgets a number all of whose samples have ended."""
        self._whole.discard(number)
