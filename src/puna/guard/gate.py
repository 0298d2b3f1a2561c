"""An answer held back until guards have seen it: what they stop never leaves, however the answer comes in.

In: the pieces of one growing answer, in order. Out: those pieces that may leave, unchanged, and where a guard stops the
answer a last one with finish "content_filter". Each guard has a lookout, which knows when it must look again and up
to where nothing can be found any more: rules look at a sliding window, models at all that was said, the code guard at
closed fences. Only what is safe for all of them leaves; then not a character of a place that is stopped has left,
as long as that place is no longer than the policy's window, or is a fenced block. Not here: stopping the
engine, which whoever reads `stop` does.

A piece whose text is not certain yet leaves with the next that has some: its log-probabilities would tell.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from puna.chat import Piece
from puna.guard import code
from puna.guard.guard import Context
from puna.guard.pipeline import Pipeline
from puna.guard.policy import Policy, Rule
from puna.guard.ruling import Finding, Ruling
from puna.guard.tails import TailOf, tail_of
from puna.prompt.message import Message, TextPart
from puna.prompt.parse import parse

FIRST_LOOK = 1  # characters: the first token should not wait; then twice as many each time, up to the policy's step
LOOK_BACK = 2  # characters that rules look at before what they find
CODE_ARGUMENTS = frozenset({"code", "command", "cmd", "script", "sql", "query", "program", "source"})

_LAST_WORD = re.compile(r"[A-Za-z\u00c0-\u024f']{1,40}\Z")
_CLOSING = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*$")


class Look(NamedTuple):
    """What a guard must judge now, and how many characters of the answer stand before it."""

    offset: int
    context: Context


class Held(NamedTuple):
    """A piece that waits: where its text stands, and how much must be safe before it leaves, None where unknown."""

    start: int
    end: int
    due: int | None
    piece: Piece


class Lookout(Protocol):
    """When a guard looks at a growing text, and up to where it will find nothing any more."""

    guard: str

    def looks(self, text: str, is_end: bool) -> Iterator[Look]:
        """Yields what must be judged now. Asking for the next one means that the last one passed."""
        ...

    def safe(self, text: str) -> int:
        """Returns how many characters of `text` may leave."""
        ...


class Gate:
    """Holds one answer back. `history` is the conversation that it answers."""

    def __init__(self, pipeline: Pipeline, history: Sequence[Message] = ()) -> None:
        self._pipeline = pipeline
        self._policy = pipeline.policy
        self._text = ""
        self._n_released = 0
        self._held: deque[Held] = deque()
        self._cuts: list[tuple[int, int]] = []
        self._findings: list[Finding] = []
        self._lookouts = [
            _lookout(name, rule, pipeline, tuple(history))
            for name, rule in self._policy.at("assistant_output").guards.items()
        ]
        self.stop: Ruling | None = None

    @property
    def found(self) -> Ruling:
        """What was found so far and stopped nothing."""
        return Ruling(point="assistant_output", policy=self._policy, findings=tuple(self._findings))

    def push(self, piece: Piece) -> list[Piece]:
        """Takes the next piece and returns those that may leave now. After a stop there are none."""
        if self.stop is not None:
            return []
        self._hold(piece)
        is_end = piece.finish is not None
        self.stop = self._look(is_end)
        if self.stop is not None:
            self._held.clear()
            return [Piece(piece.sample, "", None, None, "content_filter", piece.n_cached)]
        return self._release(len(self._text) if is_end else self._safe())

    def _hold(self, piece: Piece) -> None:
        start = len(self._text)
        self._text += piece.text
        due = len(self._text) if piece.text or piece.finish is not None else None
        if due is not None and self._held and self._held[-1].due is None:
            self._held = deque(each if each.due is not None else each._replace(due=due) for each in self._held)
        self._held.append(Held(start, len(self._text), due, piece))

    def _look(self, is_end: bool) -> Ruling | None:
        """Has all guards look that must, and returns the ruling that stops the answer, if one does."""
        if self._policy.hold == "answer" and not is_end:
            return None
        for lookout in self._lookouts:
            for look in lookout.looks(self._text, is_end):
                if stop := self._judge(lookout.guard, look):
                    return stop
        return self._look_at_calls() if is_end else None

    def _look_at_calls(self) -> Ruling | None:
        names = self._policy.at("code").guards
        for call in parse(self._text).tool_calls if names else ():
            for argument, value in call.arguments.items():
                if isinstance(value, str) and (argument.lower() in CODE_ARGUMENTS or "\n" in value):
                    for name in names:
                        if stop := self._judge(name, Look(0, Context.of_text(value, "code"))):
                            return stop
        return None

    def _judge(self, guard: str, look: Look) -> Ruling | None:
        finding = self._pipeline.judge(guard, look.context, offset=look.offset)
        if finding.decision.action == "allow" and not finding.decision.failed:
            return None
        ruling = Ruling(point=look.context.point, policy=self._policy, findings=(finding,))
        is_new = all(finding.decision[:2] != known.decision[:2] or guard != known.guard for known in self._findings)
        if is_new:  # looks overlap
            self._pipeline.log(ruling, look.context.text)
            self._findings.append(finding)
        if ruling.action == "rewrite" and self._policy.mode == "strict":
            self._cut(ruling)
        elif ruling.stops:
            self._pipeline.tally.count_stop(ruling, self._n_leaked(ruling))
            return ruling
        return None

    def _n_leaked(self, ruling: Ruling) -> int:
        """Returns how many characters of what is stopped had left: a lookout that says "safe" too early shows here."""
        if ruling.point != "assistant_output":
            return 0
        return max([0, *(min(span.end, self._n_released) - span.start for span in ruling.spans)])

    def _cut(self, ruling: Ruling) -> None:
        """Takes the places of a ruling out of what is held back, with the log-probabilities of what they touch."""
        self._cuts += [(span.start, span.end) for span in ruling.spans] or [(self._n_released, len(self._text))]
        self._held = deque(held._replace(piece=self._without_cuts(held)) for held in self._held)

    def _without_cuts(self, held: Held) -> Piece:
        places = range(held.start, held.end)
        kept = [i for i in places if not any(first <= i < last for first, last in self._cuts)]
        if len(kept) == len(places):
            return held.piece
        return held.piece._replace(text="".join(self._text[i] for i in kept), logprobs=None)

    def _safe(self) -> int:
        if self._policy.mode == "audit":
            return len(self._text)
        if self._policy.hold == "answer":
            return 0
        return min((lookout.safe(self._text) for lookout in self._lookouts), default=len(self._text))

    def _release(self, limit: int) -> list[Piece]:
        released = []
        while self._held and (due := self._held[0].due) is not None and due <= limit:
            self._n_released = due
            released.append(self._held.popleft().piece)
        return released


def _lookout(guard: str, rule: Rule, pipeline: Pipeline, history: tuple[Message, ...]) -> Lookout:
    known = pipeline.guard(guard)
    if guard == "code":
        return Fences(guard, holds=rule.can_stop)
    if known is not None and known.backend in {"weights", "judge"}:
        return Whole(guard, pipeline.policy, history)
    tail = None if known is None else tail_of(known, rule)
    return Window(guard, pipeline.policy, history) if tail is None else Ending(guard, pipeline.policy, history, tail)


def _look(text: str, offset: int, history: tuple[Message, ...]) -> Look:
    message = Message("assistant", (TextPart(text[offset:]),))
    return Look(offset, Context(point="assistant_output", messages=(*history, message)))


# Lookouts -------------------------------------------------------------------------------------------------------------


class Window:
    """For rules that nothing is known of: looks at what is new, and lets it leave once `window_chars` came after it."""

    def __init__(self, guard: str, policy: Policy, history: tuple[Message, ...]) -> None:
        self.guard = guard
        self._policy = policy
        self._history = history
        self._safe, self._next, self._step = 0, FIRST_LOOK, FIRST_LOOK

    def looks(self, text: str, is_end: bool) -> Iterator[Look]:
        """Yields the part of the text that was not safe at the last look, once there is enough of it."""
        if is_end or len(text) >= self._next:
            yield _look(text, max(0, self._safe - self._policy.context_chars), self._history)
            self._safe = max(self._safe, len(text) - self._policy.window_chars)
            self._step = min(2 * self._step, self._policy.step_chars)
            self._next = len(text) + self._step

    def safe(self, text: str) -> int:
        """Returns where the window begins that was seen last."""
        return self._safe


class Ending:
    """For rules that tell of a text where something begins that they find, or may: all before that leaves at once.

    They look where something may be found, but not at a word that may go on; and at the end at everything, so that
    also what stops nothing is counted.
    """

    def __init__(self, guard: str, policy: Policy, history: tuple[Message, ...], tail_of: TailOf) -> None:
        self.guard = guard
        self._policy = policy
        self._history = history
        self._tail_of = tail_of
        self._safe, self._next = 0, 0

    def looks(self, text: str, is_end: bool) -> Iterator[Look]:
        """Yields what is undecided, with some context before it, or at the end the whole text."""
        tail = self._tail_of(text[max(0, self._safe - LOOK_BACK) :])
        self._safe = max(self._safe, len(text) - min(tail.length, self._policy.window_chars))
        if is_end:
            yield _look(text, 0, self._history)
        elif tail.is_due and len(text) >= self._next:
            offset = max(0, self._safe - self._policy.context_chars)
            yield _look(text[:offset] + _LAST_WORD.sub("", text[offset:]), offset, self._history)
            self._next = len(text) + self._policy.step_chars

    def safe(self, text: str) -> int:
        """Returns where the first thing begins that is, or may still become, one to be found."""
        return self._safe


class Whole:
    """For models: shows them all of the answer behind the conversation, ever less often, and trusts what passed."""

    def __init__(self, guard: str, policy: Policy, history: tuple[Message, ...]) -> None:
        self.guard = guard
        self._policy = policy
        self._history = history
        self._safe, self._next = 0, policy.step_chars

    def looks(self, text: str, is_end: bool) -> Iterator[Look]:
        """Yields the whole answer so far, once it has grown enough."""
        if text and (is_end or len(text) >= self._next):
            yield _look(text, 0, self._history)
            self._safe = len(text)
            self._next = len(text) + min(len(text), self._policy.window_chars)

    def safe(self, text: str) -> int:
        """Returns how much has passed."""
        return self._safe


class Fences:
    """For the code guard: shows it each fenced block once it is closed, and holds an open one back from its beginning.

    With `holds` False, where nothing found in code can stop an answer, blocks leave as they come.
    """

    def __init__(self, guard: str, *, holds: bool) -> None:
        self.guard = guard
        self._holds = holds
        self._done = 0  # characters before which every fence is closed; the beginning of a line
        self._n_seen = 0
        self._open: int | None = None  # where a block begins that is not closed

    def looks(self, text: str, is_end: bool) -> Iterator[Look]:
        """Yields each block that was closed since, and at the end the one that never was."""
        if not is_end and "\n" not in text[self._n_seen :]:
            return  # fences are whole lines
        self._n_seen, self._open = len(text), None
        while (fence := code.FENCE.search(text[self._done :])) is not None:
            start, end = self._done + fence.start(), self._done + fence.end()
            is_closed = _CLOSING.match(text[start:end].rpartition("\n")[2]) and text[end : end + 1] == "\n"
            if not is_closed and not is_end:
                self._open = start
                return
            yield Look(start, Context.of_text(text[start:end], "assistant_output"))
            self._done = end
        self._done = max(self._done, text.rfind("\n") + 1)

    def safe(self, text: str) -> int:
        """Returns where an open block begins, or a line that may open one."""
        if not self._holds:
            return len(text)
        if self._open is not None:
            return self._open
        line = text.rfind("\n") + 1
        begins = text[line:].lstrip(" \t")
        return len(text) if begins and begins[0] not in "`~" else line
