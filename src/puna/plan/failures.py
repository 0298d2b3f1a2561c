"""A run of weeks in which machines fail: how long it takes in the end, and what of that was for nothing.

In: how much work there is, how often something fails, what checkpoints and restarts take. Out: a `Run`, by events drawn
from a seed: a failure comes, work since the last checkpoint is lost, the run starts again; a failure may come during
that too. Failures are taken as independent and equally likely at any time.
Source: best interval between checkpoints, J. W. Young 1974, "A first order approximation to the optimum checkpoint
interval"; how often GPUs fail, `hardware.MTBF_HOURS`.
"""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """mtbf_seconds of the whole cluster; save_seconds that a checkpoint holds the work up; restart_seconds from a
    failure to the next step; interval_seconds of work between two checkpoints."""

    mtbf_seconds: float
    save_seconds: float
    restart_seconds: float
    interval_seconds: float


class Run(NamedTuple):
    """Seconds of a run in all, and of those for checkpoints, for work done twice, for restarts; and its failures."""

    seconds: float
    saving: float
    lost: float
    restarting: float
    failures: int

    @property
    def share(self) -> float:
        """Useful work of all the time."""
        return 1 - (self.saving + self.lost + self.restarting) / self.seconds if self.seconds else 1.0


def best_interval(mtbf_seconds: float, save_seconds: float) -> float:
    """Returns the seconds of work between checkpoints at which least is lost, in Young's approximation."""
    return math.sqrt(2 * max(save_seconds, 1e-3) * mtbf_seconds)


def simulate(work_seconds: float, habits: Habits, seed: int = 0) -> Run:
    """Returns a run of so much useful work."""
    draw = random.Random(seed)
    now = done = saving = lost = restarting = 0.0
    failures = 0
    fails_at = draw.expovariate(1 / habits.mtbf_seconds)
    while done < work_seconds:
        piece = min(habits.interval_seconds, work_seconds - done)
        saves = habits.save_seconds if done + piece < work_seconds else 0.0
        if now + piece + saves <= fails_at:
            now, done, saving = now + piece + saves, done + piece, saving + saves
            continue
        failures += 1
        lost += fails_at - now
        now = fails_at
        while True:  # starting again may fail as well
            fails_at = now + draw.expovariate(1 / habits.mtbf_seconds)
            if fails_at >= now + habits.restart_seconds:
                break
            failures += 1
            restarting += fails_at - now
            now = fails_at
        now += habits.restart_seconds
        restarting += habits.restart_seconds
    return Run(now, saving, lost, restarting, failures)
