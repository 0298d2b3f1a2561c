"""What a policy makes of verdicts: a ruling about one point of a conversation, for clients and for counters.

In: verdicts and what `policy.decide` says of each. Out: `Ruling`s, whose document names guards, codes and scores and
holds nothing that a user or a model wrote; and a `Tally`, which counts them. Not here: running guards (`pipeline`).
"""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from puna.guard.guard import Point
from puna.guard.policy import ORDER, Decision, Policy
from puna.guard.verdict import Action, Span, Verdict

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of the guards' times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One guard's verdict and what follows from it. Spans count from the beginning of the whole text."""

    guard: str
    verdict: Verdict
    decision: Decision
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns guard, backend, action, codes, score and status, for JSON."""
        return {
            "guard": self.guard,
            "backend": self.verdict.backend,
            "action": self.decision.action,
            "codes": list(self.decision.codes),
            "score": round(self.verdict.score, 6),
            "status": self.verdict.status,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What all guards of a point found, together: `action` is the strictest of theirs."""

    point: Point
    policy: Policy
    findings: tuple[Finding, ...] = ()

    @property
    def action(self) -> Action:
        return max((finding.decision.action for finding in self.findings), key=ORDER.index, default="allow")

    @property
    def stops(self) -> bool:
        """Says whether what was judged must not go on: never under a policy that only audits."""
        return self.policy.mode == "strict" and self.action in {"block", "escalate"}

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes that led here, each once."""
        return tuple(dict.fromkeys(code for finding in self.findings for code in finding.decision.codes))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The places of what is to be cut out or withheld, in the order of the text."""
        spans = [span for each in self.findings if each.decision.action != "flag" for span in each.decision.spans]
        return tuple(sorted(spans, key=lambda span: (span.start, span.end)))

    @property
    def failed(self) -> bool:
        """Says whether some guard could not judge."""
        return any(finding.decision.failed for finding in self.findings)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Codes that no guard of this point can see: about them nothing is known."""
        seen = {code for finding in self.findings for code in finding.verdict.coverage}
        blind = (code for finding in self.findings for code in finding.verdict.unknown)
        return tuple(code for code in dict.fromkeys(blind) if code not in seen)

    def to_dict(self) -> dict[str, Any]:
        """Returns the ruling for clients: nothing in it quotes what was judged."""
        return {
            "point": self.point,
            "action": self.action,
            "enforced": self.policy.mode == "strict",
            "policy": self.policy.name,
            "policy_hash": self.policy.digest,
            "codes": list(self.codes),
            "unknown": list(self.unknown),
            "guards": [finding.to_dict() for finding in self.findings],
        }


class Tally:
    """Counts of everything that guards found since the start. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.verdicts: Counter[tuple[str, str, str, str]] = Counter()  # point, guard, backend, action
        self.codes: Counter[tuple[str, str]] = Counter()  # point, code
        self.failures: Counter[tuple[str, str, str]] = Counter()  # point, guard, what followed
        self.stops: Counter[tuple[str, str]] = Counter()  # point, action of what was stopped
        self.times: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))  # by guard and bucket
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by guard
        self.leaked_chars = 0  # of places found only after they had been released

    def count(self, point: Point, finding: Finding) -> None:
        """Counts one guard's verdict."""
        guard, verdict, decision = finding.guard, finding.verdict, finding.decision
        with self._lock:
            self.verdicts[point, guard, verdict.backend, decision.action] += 1
            self.codes.update((point, code) for code in decision.codes)
            self.times[guard][bisect_left(SECONDS, finding.seconds)] += 1
            self.seconds[guard] += finding.seconds
            if decision.failed:
                self.failures[point, guard, "passed" if decision.action == "allow" else "blocked"] += 1

    def count_stop(self, ruling: Ruling, leaked_chars: int = 0) -> None:
        """Counts something that was stopped, and how much of it had left before."""
        with self._lock:
            self.stops[ruling.point, ruling.action] += 1
            self.leaked_chars += leaked_chars

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts for JSON."""
        with self._lock:
            return {
                "verdicts": {"/".join(key): n for key, n in sorted(self.verdicts.items())},
                "codes": {"/".join(key): n for key, n in sorted(self.codes.items())},
                "failures": {"/".join(key): n for key, n in sorted(self.failures.items())},
                "stops": {"/".join(key): n for key, n in sorted(self.stops.items())},
                "seconds": {name: round(total, 6) for name, total in sorted(self.seconds.items())},
                "leaked_chars": self.leaked_chars,
            }
