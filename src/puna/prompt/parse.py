"""A finished reply to a message: its words, and the tool calls written in it.

In: the text of one assistant turn, without its end token. Out: a `Message`. Models mix several notations, so all of
them are read, with words before, between and after:

    [f(a="x"), g.h(b=[1, None], **{"from": True})]            a list of calls in Python's notation
    {"name": "f", "parameters": {"a": "x"}}                    JSON, one object, several, or a list of them
    {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    <function=f>{"a": "x"}</function>
    any of these between <|python_start|> and <|python_end|>

Nothing is evaluated: calls hold literals only, and size and depth are limited. A call that is not understood to its
last character stays text. Not here: checking arguments against a tool's schema.

Source: llama_models 0.3.0, `models/llama4/prompt_format.md`, `models/llama3/tool_utils.py`.
"""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from puna.errors import PromptError
from puna.prompt.message import MAX_DEPTH, NAME, Message, TextPart, Tool, ToolCall
from puna.prompt.vocab import PYTHON_END, PYTHON_START

MAX_CHARS = 1_000_000
"""A longer reply is text as a whole: no model means that as a call."""

MAX_ATTEMPTS = 500
"""Places of a reply that are tried as the beginning of a call, so that hostile text costs little time."""

MAX_DIGITS = 400

_CANDIDATE = re.compile(
    rf"""\[\s*{NAME}\s*\(|\[\s*\{{|\{{\s*["'](?:name|type|function|parameters|arguments|id)["']|<function="""
)
_TAG = re.compile(rf"<function=({NAME})>\s*")
_SEPARATOR = re.compile(r"[\s;,]*")
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_BLANK = re.compile(r"\s*")
_NAME = re.compile(NAME)
_ARGUMENT = re.compile(r"[^\W\d]\w*")
_STRING = re.compile(
    r'''(?P<raw>[rR]?)(?:"""(?P<a>(?:[^\\]|\\.)*?)"""|\'\'\'(?P<b>(?:[^\\]|\\.)*?)\'\'\'|"(?P<c>(?:[^"\\]|\\.)*+)"|'(?P<d>(?:[^'\\]|\\.)*+)')''',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(\n|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|.)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z]+")
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPED = {
    "\n": "",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    "/": "/",
    "'": "'",
    '"': '"',
}


class _Found(NamedTuple):
    """Calls, and the place in the text where they begin and end; no calls where the place holds other data."""

    calls: list[ToolCall]
    start: int
    end: int


class _NotACallError(Exception):
    """The text at this place is no call; it stays text."""


def parse(text: str, tools: Sequence[Tool] = ()) -> Message:
    """Returns the assistant's message that `text` stands for; its content is what is not a call.

    With `tools`, only their names are calls, and a list that holds another name stays text as a whole; without, every
    name is one. Words keep their blanks, so rendering the message gives `text` again where it was written in that
    style; blanks, commas and semicolons between and after calls, and the python markers, are dropped.
    """
    found = _find(text, frozenset(tool.name for tool in tools))
    words = _words(text, found)
    content = (TextPart(words),) if words else ()
    return Message("assistant", content, tuple(call for place in found for call in place.calls))


def _words(text: str, found: Sequence[_Found]) -> str:
    """Returns `text` without the places in `found` and without what only separates them."""
    if not found:
        return text
    gaps = [text[here.end : there.start] for here, there in pairwise(found)]
    gaps.append(text[found[-1].end :])
    kept = [text[: found[0].start], *gaps]
    kept = [words.replace(PYTHON_START, "").replace(PYTHON_END, "") for words in kept]
    return kept[0] + "".join(gap for gap in kept[1:] if not _SEPARATOR.fullmatch(gap))


def _find(text: str, names: Collection[str]) -> list[_Found]:
    found: list[_Found] = []
    start = 0
    for _ in range(MAX_ATTEMPTS if len(text) <= MAX_CHARS else 0):
        candidate = _CANDIDATE.search(text, start)
        if candidate is None:
            break
        start = candidate.start()
        try:
            place = _read_at(text, start)
        except (_NotACallError, PromptError):
            start += 1
        else:
            start = place.end
            if place.calls and (not names or all(call.name in names for call in place.calls)):
                found.append(place)
    return found


def _read_at(text: str, start: int) -> _Found:
    """Returns what is written at `start`. Raises _NotACallError, or PromptError from `ToolCall`, for nonsense."""
    if text[start] == "<":
        return _tagged_call(text, start)
    after = _blank_end(text, start + 1)
    if text[start] == "[" and text[after] != "{":
        reader = _Reader(text, start)
        return _Found(reader.calls(), start, reader.at)
    value, end = _object(text, start)
    try:
        calls = [_call_of(document) for document in (value if isinstance(value, list) else [value])]
    except (_NotACallError, PromptError):
        calls = []
    return _Found(calls, start, end)


def _tagged_call(text: str, start: int) -> _Found:
    tag = _TAG.match(text, start)
    if tag is None or not text.startswith("{", tag.end()):
        raise _NotACallError
    arguments, end = _object(text, tag.end())
    closing = _blank_end(text, end)
    end = closing + len("</function>") if text.startswith("</function>", closing) else end
    return _Found([ToolCall(tag[1], arguments)], start, end)


def _call_of(document: Any) -> ToolCall:
    """Returns the call of one JSON object, which holds a name and arguments and nothing unknown."""
    if isinstance(document, dict) and isinstance(document.get("function"), dict):
        document = {key: value for key, value in document.items() if key != "function"} | document["function"]
    if not isinstance(document, dict) or not document.keys() <= {"name", "parameters", "arguments", "type", "id"}:
        raise _NotACallError
    name, call_id = document.get("name"), document.get("id")
    keys = document.keys() & {"parameters", "arguments"}
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(keys) != 1:
        raise _NotACallError
    if document.get("type", "function") != "function" or not isinstance(call_id, str | None):
        raise _NotACallError
    arguments = document[keys.pop()]
    if isinstance(arguments, str):
        arguments = _whole_object(arguments)
    return ToolCall(name, {} if arguments is None else arguments, call_id)


def _blank_end(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()


def _object(text: str, start: int) -> tuple[Any, int]:
    """Returns the JSON value at `start` and its end; where JSON fails, the same in Python's notation is read.

    What is nested too deep is refused before the library reads it: how deep that goes, and how long it takes, would
    depend on the process's recursion limit.
    """
    if _is_deeper(text, start, MAX_DEPTH):
        raise _NotACallError
    try:
        value, end = _JSON.raw_decode(text, start)
    except ValueError:
        reader = _Reader(text, start)
        value, end = reader.value(MAX_DEPTH), reader.at
    return value, end


def _is_deeper(text: str, start: int, most: int) -> bool:
    """Says whether the brackets that open at `start` nest deeper than `most` before they close; strings are skipped."""
    depth = 0
    for part in _STRUCTURE.finditer(text, start):
        if part[0] in "[{":
            depth += 1
            if depth > most:
                return True
        elif part[0] in "]}":
            depth -= 1
            if depth <= 0:
                return False
    return False


def _whole_object(text: str) -> Any:
    value, end = _object(text, _blank_end(text, 0))
    if text[end:].strip():
        raise _NotACallError
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


class _Reader:
    """Reads Python's literal notation at `at` and moves on; every method raises _NotACallError where it does not fit.

    More than Python allows: JSON's true, false, null and escaped slash, keywords as argument names, names with dots and
    dashes, line ends within strings. Less: no expressions, no sets, no bytes, and keys of dictionaries are strings.
    """

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def calls(self) -> list[ToolCall]:
        self._expect("[")
        calls = [self._call()]
        while self._take(",") and not self._sees("]"):
            calls.append(self._call())
        self._expect("]")
        return calls

    def value(self, depth: int) -> Any:
        if depth == 0:
            raise _NotACallError
        match self._peek():
            case "[":
                return self._items("[", "]", depth)
            case "(":
                return self._items("(", ")", depth)
            case "{":
                return self._dictionary(depth)
            case char if char in "0123456789+-.":
                return self._number()
        word = _WORD.match(self.text, self.at)
        if word and word[0] in _CONSTANTS:
            self.at = word.end()
            return _CONSTANTS[word[0]]
        return self._string()

    def _call(self) -> ToolCall:
        name = self._match(_NAME)[0]
        arguments: dict[str, object] = {}
        self._expect("(")
        while not self._sees(")"):
            if self._take("**"):
                new = self._dictionary(MAX_DEPTH + 1)
            else:
                key = self._match(_ARGUMENT)[0]
                self._expect("=")
                new = {key: self.value(MAX_DEPTH)}
            if arguments.keys() & new.keys():
                raise _NotACallError
            arguments |= new
            if not self._take(","):
                break
        self._expect(")")
        return ToolCall(name, arguments)

    def _items(self, opening: str, closing: str, depth: int) -> list[Any]:
        self._expect(opening)
        items = []
        while not self._sees(closing):
            items.append(self.value(depth - 1))
            if not self._take(","):
                break
        self._expect(closing)
        return items

    def _dictionary(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        items = {}
        while not self._sees("}"):
            key = self._string()
            self._expect(":")
            items[key] = self.value(depth - 1)
            if not self._take(","):
                break
        self._expect("}")
        return items

    def _number(self) -> int | float:
        digits = self._match(_NUMBER)[0]
        if len(digits) > MAX_DIGITS:
            raise _NotACallError
        value = int(digits) if digits.lstrip("+-").isdigit() else float(digits)
        if not math.isfinite(value):
            raise _NotACallError
        return value

    def _string(self) -> str:
        """Reads one or more strings side by side. Escaped surrogate pairs become their character, lone ones U+FFFD."""
        parts = [self._string_part()]
        while self._peek() in "\"'":
            parts.append(self._string_part())
        return "".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _string_part(self) -> str:
        literal = self._match(_STRING)
        body = next(literal[group] for group in "abcd" if literal[group] is not None)
        return body if literal["raw"] else _ESCAPE.sub(_unescaped, body)

    def _peek(self) -> str:
        """Returns the next character that is not blank; raises at the end of the text."""
        self.at = _blank_end(self.text, self.at)
        if self.at >= len(self.text):
            raise _NotACallError
        return self.text[self.at]

    def _sees(self, mark: str) -> bool:
        self._peek()
        return self.text.startswith(mark, self.at)

    def _take(self, mark: str) -> bool:
        seen = self._sees(mark)
        self.at += len(mark) if seen else 0
        return seen

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise _NotACallError

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        self._peek()
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _NotACallError
        self.at = match.end()
        return match


def _unescaped(escape: re.Match[str]) -> str:
    """Returns the character of a Python escape; an unknown escape stays as it is, as in Python."""
    code = escape[1]
    if code in _ESCAPED:
        return _ESCAPED[code]
    try:
        if code[0] == "N" and len(code) > 1:
            return unicodedata.lookup(code[2:-1])
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
    except (KeyError, ValueError, OverflowError) as error:
        raise _NotACallError from error
    return chr(int(code, 8)) if code[0] in "01234567" else escape[0]
