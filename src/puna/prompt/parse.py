"""A reply to a message, as it grows or whole: its words, and the tool calls written in it.

In: the text of one assistant turn, without its end token, in pieces. Out: words and calls as soon as they are certain,
the same however the text was cut; for a whole text, a `Message`. Models mix several notations, so all of them are
read, with words before, between and after:

    [f(a="x"), g.h(b=[1, None], **{"from": True})]            a list of calls in Python's notation
    {"name": "f", "parameters": {"a": "x"}}                    JSON, one object, several, or a list of them
    {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    <function=f>{"a": "x"}</function>
    any of these between <|python_start|> and <|python_end|>

A call that is not understood to its last character stays text. Not here: reading what stands at one place (`calls`),
checking arguments against a tool's schema.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from puna.prompt.calls import NotACallError, UnfinishedError, read_at
from puna.prompt.message import NAME, Message, TextPart, Tool, ToolCall
from puna.prompt.vocab import PYTHON_END, PYTHON_START

MAX_CHARS = 1_000_000
"""What follows so many characters is text: no model means that as a call."""

MAX_ATTEMPTS = 500
"""Places of a reply that are tried as the beginning of a call, so that hostile text costs little time."""

_CANDIDATE = re.compile(
    rf"""\[\s*{NAME}\s*\(|\[\s*\{{|\{{\s*["'](?:name|type|function|parameters|arguments|id)["']|<function="""
)
_BEGUN = re.compile(rf"""\[\s*+(?:{NAME}\s*+)?+\Z|\{{\s*+(?:["'][a-z]*+)?+\Z|<[a-z]{{0,8}}+\Z""")
"""The end of a text that may become a candidate."""

_MARKER = re.compile("|".join(map(re.escape, (PYTHON_START, PYTHON_END))))
_MARKER_BEGUN = re.compile(
    "|".join(rf"{re.escape(name[:n])}\Z" for name in (PYTHON_START, PYTHON_END) for n in range(len(name) - 1, 0, -1))
)
_SEPARATOR = re.compile(r"[\s;,]*+")
_CLOSERS = re.compile(r"[\]})>]")

_MAX_CLOSINGS = 30  # closing brackets after which an unfinished call is read anew; then only as it grows by half


class Grown(NamedTuple):
    """Words and calls that became certain. Where both came at once, in the text the calls may stand anywhere."""

    words: str
    calls: tuple[ToolCall, ...]


def parse(text: str, tools: Sequence[Tool] = ()) -> Message:
    """Returns the assistant's message that `text` stands for; its content is what is not a call.

    With `tools`, only their names are calls, and a list that holds another name stays text as a whole; without, every
    name is one. Words keep their blanks, so rendering the message gives `text` again where it was written in that
    style; blanks, commas and semicolons between and after calls, and the python markers, are dropped.
    """
    reply = Reply(tools)
    parts = (reply.push(text), reply.finish())
    words = "".join(part.words for part in parts)
    content = (TextPart(words),) if words else ()
    return Message("assistant", content, tuple(call for part in parts for call in part.calls))


class Reply:
    """One reply while it grows: `push` its text, then `finish`; joined, what they return is what `parse` returns."""

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._words = _Words()
        self._n_left = MAX_CHARS  # characters in which calls are looked for
        self._n_attempts = MAX_ATTEMPTS
        self._rest = ""  # what is not decided
        self._more: list[str] = []  # what has come since that was looked at
        self._n_undecided = 0  # characters of both
        self._n_next = 0  # as long as the rest must be before it is looked at again, unless a bracket closes
        self._n_closings = 0
        self.n_misread = 0  # places where a call of a tool began and none was

    def push(self, text: str) -> Grown:
        """Returns what became certain with `text`."""
        looked_at, beyond = text[: self._n_left], text[self._n_left :]
        self._n_left -= len(looked_at)
        self._more.append(looked_at)
        self._n_undecided += len(looked_at)
        grown = [*self._decided(is_whole=bool(beyond))] if self._is_due(looked_at) or beyond else []
        return self._shown([*grown, beyond])

    def finish(self) -> Grown:
        """Returns what was held back, now that nothing follows."""
        shown = self._shown([*self._decided(is_whole=True)])
        return Grown(shown.words + self._words.finish(), shown.calls)

    def _is_due(self, new: str) -> bool:
        """Says whether to look at the rest: at every piece of a long call would take its square in time."""
        if self._n_undecided >= self._n_next:
            return True
        self._n_closings += _CLOSERS.search(new) is not None
        return self._n_closings <= _MAX_CLOSINGS and _CLOSERS.search(new) is not None

    def _shown(self, grown: Sequence[str | tuple[ToolCall, ...]]) -> Grown:
        words, calls = "", list[ToolCall]()
        for each in grown:
            if isinstance(each, str):
                words += self._words.push(each)
            else:
                words += self._words.call()
                calls += each
        return Grown(words, tuple(calls))

    def _decided(self, *, is_whole: bool) -> Iterator[str | tuple[ToolCall, ...]]:
        """Yields words and calls from the beginning of the rest, as far as that can be told, and takes them off it."""
        text, start = "".join((self._rest, *self._more)), 0
        self._more.clear()
        while (candidate := self._candidate(text, start)) is not None:
            yield text[start : candidate.start()]
            start = candidate.start()
            try:
                place = read_at(text, start, is_whole=is_whole)
            except UnfinishedError:
                if not is_whole:
                    self._keep(text[start:], (len(text) - start) * 3 // 2)
                    return
                end = start + 1
            except NotACallError:
                end = start + 1
            else:
                end = place.end
                if place.calls and (not self._names or all(call.name in self._names for call in place.calls)):
                    yield tuple(place.calls)
                    start = end
            self._n_attempts -= 1
            self._n_closings = 0
            self.n_misread += start < end
            yield text[start:end]
            start = end
        begun = None if is_whole or not self._n_attempts else _BEGUN.search(text, start)
        end = len(text) if begun is None else begun.start()
        yield text[start:end]
        n_kept = len(text) - end
        self._keep(text[end:], n_kept * 5 // 4 if n_kept > 64 else 0)

    def _keep(self, rest: str, n_next: int) -> None:
        self._rest, self._n_undecided, self._n_next = rest, len(rest), n_next

    def _candidate(self, text: str, start: int) -> re.Match[str] | None:
        return _CANDIDATE.search(text, start) if self._n_attempts else None


class _Words:
    """Words without the python markers, where there are calls, and without what only separates calls."""

    def __init__(self) -> None:
        self._has_calls = False
        self._gap: str | None = None  # behind a call: what only separates so far
        self._held = ""  # what is a marker, or may become one

    def push(self, text: str) -> str:
        """Returns the words that are certain."""
        text, self._held = self._held + text, ""
        if not self._has_calls:  # whether a marker is one shows with the first call
            marker = _MARKER.search(text) or _MARKER_BEGUN.search(text)
            end = len(text) if marker is None else marker.start()
            self._held = text[end:]
            return text[:end]
        text = _MARKER.sub("", text)
        begun = _MARKER_BEGUN.search(text)
        end = len(text) if begun is None else begun.start()
        self._held = text[end:]
        return self._after_gap(text[:end])

    def call(self) -> str:
        """Returns the words that are certain now that a call stands here."""
        held, self._held = _MARKER.sub("", self._held), ""
        words = self._after_gap(held)
        self._has_calls, self._gap = True, ""
        return words

    def finish(self) -> str:
        """Returns the words that were held back."""
        held, self._held = self._held, ""
        return self._after_gap(held) if self._has_calls else held

    def _after_gap(self, text: str) -> str:
        """Returns `text`, or holds it back while it only separates calls."""
        if self._gap is None:
            return text
        gap = self._gap + text
        if _SEPARATOR.fullmatch(gap):
            self._gap = gap
            return ""
        self._gap = None
        return gap
