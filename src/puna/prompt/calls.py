"""A tool call at one place of a text, in any of the notations that models write.

In: a text, a place in it, and whether the text may go on. Out: the calls there and where they end; or why there are
none: the place holds something else, or only the beginning of something. Nothing is evaluated: calls hold literals
only, and size and depth are limited.
Not here: where in a text a call may begin (`parse`).

Source: llama_models 0.3.0, `models/llama4/prompt_format.md`, `models/llama3/tool_utils.py`.
"""

import json
import math
import re
import unicodedata
from typing import Any, NamedTuple, NoReturn

from puna.errors import PromptError
from puna.prompt.message import MAX_DEPTH, NAME, ToolCall

MAX_DIGITS = 400

_TAG = re.compile(rf"<function=({NAME})>\s*")
_TAG_BEGUN = re.compile(rf"<function=(?:{NAME})?\Z")
_CLOSING_TAG = "</function>"
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


_TOUCHES_END = re.compile(r"[\w.:/+*-]*\Z")
"""What more text could turn into something else: the rest of a text that is one word, or nothing."""


class Found(NamedTuple):
    """Calls, and the place in the text where they end; no calls where the place holds other data."""

    calls: list[ToolCall]
    end: int


class NotACallError(Exception):
    """The text at this place is no call, whatever follows."""


class UnfinishedError(NotACallError):
    """The text at this place is no call yet: it ends too early to tell."""


def read_at(text: str, start: int, *, is_whole: bool = True) -> Found:
    """Returns what is written at `start`, where one of the notations begins.

    Raises NotACallError; where the text is not whole and more of it could make the place something else,
    UnfinishedError. Without that, what was returned stays the same however the text goes on.
    """
    reader = _Reader(text, start)
    try:
        found = _read(reader)
    except UnfinishedError:
        raise
    except (NotACallError, PromptError) as error:
        if not is_whole and (reader.is_doubtful or _is_open(text, start)):
            raise UnfinishedError from error
        raise NotACallError from error
    if not is_whole and reader.is_doubtful:
        raise UnfinishedError
    return found


def _read(reader: "_Reader") -> Found:
    text, start = reader.text, reader.at
    if text[start] == "<":
        return _tagged_call(reader)
    after = _blank_end(text, start + 1)
    if text[start] == "[" and text[after] != "{":
        return Found(reader.calls(), reader.at)
    value, end = _object(reader)
    try:
        calls = [_call_of(document) for document in (value if isinstance(value, list) else [value])]
    except (NotACallError, PromptError):
        calls = []
    return Found(calls, end)


def _is_open(text: str, start: int) -> bool:
    """Says whether the object at `start` has not closed its brackets, so that JSON may still come of it."""
    after = _blank_end(text, start + 1)
    is_object = text[start] == "{" or (text[start] == "[" and text[after : after + 1] == "{")
    return (is_object or text[start] == "<") and not _is_deeper(text, start, MAX_DEPTH) and not _closes(text, start)


def _tagged_call(reader: "_Reader") -> Found:
    text, start = reader.text, reader.at
    tag = _TAG.match(text, start)
    if tag is None or tag.end() == len(text):
        is_begun = tag is not None or _TAG_BEGUN.match(text, start)
        raise UnfinishedError if is_begun else NotACallError
    if text[tag.end()] != "{":
        raise NotACallError
    reader.at = tag.end()
    arguments, end = _object(reader)
    closing = _blank_end(text, end)
    if text.startswith(_CLOSING_TAG, closing):
        end = closing + len(_CLOSING_TAG)
    elif _CLOSING_TAG.startswith(text[closing:]):  # more text may close it
        reader.is_doubtful = True
    return Found([ToolCall(tag[1], arguments)], end)


def _call_of(document: Any) -> ToolCall:
    """Returns the call of one JSON object, which holds a name and arguments and nothing unknown."""
    if isinstance(document, dict) and isinstance(document.get("function"), dict):
        document = {key: value for key, value in document.items() if key != "function"} | document["function"]
    if not isinstance(document, dict) or not document.keys() <= {"name", "parameters", "arguments", "type", "id"}:
        raise NotACallError
    name, call_id = document.get("name"), document.get("id")
    keys = document.keys() & {"parameters", "arguments"}
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(keys) != 1:
        raise NotACallError
    if document.get("type", "function") != "function" or not isinstance(call_id, str | None):
        raise NotACallError
    arguments = document[keys.pop()]
    if isinstance(arguments, str):
        arguments = _whole_object(arguments)
    return ToolCall(name, {} if arguments is None else arguments, call_id)


def _blank_end(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()


def _object(reader: "_Reader") -> tuple[Any, int]:
    """Returns the JSON value where `reader` is and its end; where JSON fails, the same in Python's notation is read.

    What is nested too deep is refused before the library reads it: how deep that goes, and how long it takes, would
    depend on the process's recursion limit.
    """
    text, start = reader.text, reader.at
    if _is_deeper(text, start, MAX_DEPTH):
        raise NotACallError
    try:
        value, end = _JSON.raw_decode(text, start)
    except ValueError:
        value, end = reader.value(MAX_DEPTH), reader.at
    return value, end


def _closes(text: str, start: int) -> bool:
    """Says whether the brackets that open at `start` close again; strings are skipped."""
    depth = 0
    for part in _STRUCTURE.finditer(text, start):
        if part[0] in "[{":
            depth += 1
        elif part[0] in "]}":
            depth -= 1
            if depth <= 0:
                return True
    return False


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
    value, end = _object(_Reader(text, _blank_end(text, 0)))
    if text[end:].strip():
        raise NotACallError
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


class _Reader:
    """Reads Python's literal notation at `at` and moves on; every method raises NotACallError where it does not fit,
    UnfinishedError where the text ends too early to tell. `is_doubtful` says that more text may change what was read.

    More than Python allows: JSON's true, false, null and escaped slash, keywords as argument names, names with dots and
    dashes, line ends within strings. Less: no expressions, no sets, no bytes, and keys of dictionaries are strings.
    """

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at
        self.is_doubtful = False

    def calls(self) -> list[ToolCall]:
        self._expect("[")
        calls = [self._call()]
        while self._take(",") and not self._sees("]"):
            calls.append(self._call())
        self._expect("]")
        return calls

    def value(self, depth: int) -> Any:
        if depth == 0:
            raise NotACallError
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
                raise NotACallError
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
            raise NotACallError
        value = int(digits) if digits.lstrip("+-").isdigit() else float(digits)
        if not math.isfinite(value):
            raise NotACallError
        return value

    def _string(self) -> str:
        """Reads one or more strings side by side. Escaped surrogate pairs become their character, lone ones U+FFFD."""
        parts = [self._string_part()]
        while self._peek() in "\"'":
            parts.append(self._string_part())
        return "".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _string_part(self) -> str:
        is_triple = self.text.startswith(('"""', "'''"), self.at + (self._peek() in "rR"))
        literal = self._match(_STRING)
        self.is_doubtful |= is_triple and literal["a"] is None and literal["b"] is None  # its end may still come
        body = next(literal[group] for group in "abcd" if literal[group] is not None)
        return body if literal["raw"] else _ESCAPE.sub(_unescaped, body)

    def _peek(self) -> str:
        """Returns the next character that is not blank; raises at the end of the text."""
        self.at = _blank_end(self.text, self.at)
        if self.at >= len(self.text):
            raise UnfinishedError
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
            raise self._misfit()

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        self._peek()
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self._misfit()
        self.at = match.end()
        return match

    def _misfit(self) -> NotACallError:
        """Returns the error for what stands here: a word at the end may go on, and a string may still be closed."""
        begins_string = self.text[self.at] in "\"'" or self.text[self.at : self.at + 2].lower() in ("r'", 'r"')
        is_open = begins_string or _TOUCHES_END.match(self.text, self.at)
        return UnfinishedError() if is_open else NotACallError()


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
        raise NotACallError from error
    return chr(int(code, 8)) if code[0] in "01234567" else escape[0]
