"""What the event loop asks of whoever runs the model, and what it is told: plain values, so both may be apart.

In: nothing. Out: orders, and reports. An order has a number that its giver chose; answers to it name that.
Not here: giving orders (`worker`), obeying them (`stepping`), how they travel between processes (`apart`).
"""

from typing import NamedTuple

import msgspec

from puna import errors
from puna.chat import Options, Piece
from puna.engine.request import TokenLogprobs
from puna.errors import PunaError
from puna.prompt.render import Prompt
from puna.serve.load import Held


class Begin(NamedTuple):
    """Answer a prompt. Settled where something is wrong with it; else a report says when it has begun.

    With `joins` a piece may stand for several tokens; with `is_whole` nobody looks before the end.
    """

    number: int
    prompt: Prompt
    options: Options
    joins: bool = False
    is_whole: bool = False


class End(NamedTuple):
    """Drop what goes on of the answers that were begun under this number: all samples, or one. Never settled."""

    number: int
    sample: int | None


class Score(NamedTuple):
    """Read a prompt, with an adapter if one is named. Settled with what was expected at its ids but the first, and the
    `n` most probable ids each."""

    number: int
    prompt: Prompt
    n: int
    adapter: str | None


class Count(NamedTuple):
    """Settled with how many tokens each expert of each layer with experts took."""

    number: int


Order = Begin | End | Score | Count


class Problem(NamedTuple):
    """An error, by the name of its kind and what it says."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> "Problem":
        """Returns what can be told of an error; what is none of ours says what it was."""
        if isinstance(error, PunaError):
            return cls(
                next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)), str(error)
            )
        return cls(PunaError.__name__, f"{type(error).__name__}: {error}")

    def error(self) -> PunaError:
        """Returns the error again."""
        kind: type[PunaError] = getattr(errors, self.kind)
        return kind(self.text)


class Settled(NamedTuple):
    """The end of an order: what went wrong, or what it asked for."""

    number: int
    problem: Problem | None = None
    expected: list[TokenLogprobs] | None = None  # of Score
    counts: list[list[int]] | None = None  # of Count


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What happened since the last report: at most one step of the model. `failed` ended with `problem`.

    `held` is None where nobody looked: then it is some hundredths of a second old at most.
    """

    held: Held | None
    n_made: int = 0
    """Tokens, told or not."""
    pieces: list[tuple[int, Piece]] = []
    begun: list[int] = []
    """What has begun to run."""
    settled: list[Settled] = []
    failed: list[int] = []
    problem: Problem | None = None
