"""What every guard answers: a verdict, with the places that led to it.

In: the findings of one guard about one text. Out: a `Verdict`, comparable between guards and ready for JSON. It does
not know policies: `action` is what the guard itself recommends, and a policy may tighten or loosen it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Action = Literal["allow", "flag", "rewrite", "block", "escalate"]
Backend = Literal["weights", "judge", "embedded", "rules"]
"""What judged: a trained guard from a checkpoint, a chat model asked to, a small model of the package, or rules."""

Status = Literal["ok", "error", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A place in the text: characters `start` to `end` (excluded), under which code, and what it says or should say.

    `payload` is text that the place hides, decoded; `fix` is what to write instead.
    """

    start: int
    end: int
    code: str
    score: float
    reason: str
    payload: str | None = None
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the span for JSON, without the fields that say nothing."""
        named = {name: getattr(self, name) for name in ("start", "end", "code", "score", "reason", "payload", "fix")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A guard's judgement of one text.

    `score` lies in 0..1, higher is worse; `codes` are those that were found, the worst first. `coverage` lists the
    codes that this backend can see at all, and `unknown` those of its guard's vocabulary that it cannot: they are
    never safe. `scores` are those of single codes, as far as the backend tells them apart. `status` other than "ok"
    means that not everything was judged, and `reason` says why; what follows from that is the policy's affair (fail
    open or closed).
    """

    guard: str
    action: Action
    score: float
    codes: tuple[str, ...]
    spans: tuple[Span, ...]
    backend: Backend
    status: Status
    coverage: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict for JSON, spans included."""
        return {
            "guard": self.guard,
            "action": self.action,
            "score": round(self.score, 6),
            "codes": list(self.codes),
            "spans": [span.to_dict() for span in self.spans],
            "backend": self.backend,
            "status": self.status,
            "coverage": list(self.coverage),
            "unknown": list(self.unknown),
            "scores": {code: round(score, 6) for code, score in self.scores.items()},
            "reason": self.reason,
        }


def action_of(score: float, *, flag_at: float, block_at: float) -> Action:
    """Returns "block" from `block_at` on, "flag" from `flag_at` on, "allow" below."""
    return "block" if score >= block_at else "flag" if score >= flag_at else "allow"


def codes_of(spans: Sequence[Span]) -> tuple[str, ...]:
    """Returns each code once, the worst first, then in the order of the text."""
    ranked = sorted(spans, key=lambda span: (-span.score, span.start))
    return tuple(dict.fromkeys(span.code for span in ranked))
