"""How the model's threads wait for each other: awake for some microseconds, then asleep.

In: nothing. Out: a setting of GNU's OpenMP, whose library reads it when it is loaded, before torch is there. Left to
itself it stays awake for milliseconds, and between two steps that is a core which HTTP could use; where threads sleep
at once, every phase of a step has to wake them. Whoever has set `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT` is asked no more;
other libraries for OpenMP read neither.

Source: GCC's libgomp manual, GOMP_SPINCOUNT. Measured: decision 017.
"""

import os
from collections.abc import MutableMapping

SPINS = 1000
"""Looks before a thread sleeps: some twenty microseconds, longer than it waits within a step of a model."""


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has the model's threads wait like that, unless the environment says how they wait."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
