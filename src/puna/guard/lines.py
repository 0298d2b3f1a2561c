"""One verdict a line: guards over a file of JSON lines, as the command `puna guard` runs them.

In: JSON objects, one a line, with `text`, or `code` and perhaps `language`, or `messages`, the last of which is judged.
Out: one verdict each, in order, as a mapping for JSON. It does not know files or the terminal.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from puna.errors import PromptError
from puna.guard.guard import Context, Guard, Point, code_guard, hidden_guard, injection_guard, judge
from puna.guard.lexicon import LexiconGuard
from puna.prompt.message import Message

GUARDS: dict[str, Callable[[], Guard]] = {
    "content": LexiconGuard,
    "injection": injection_guard,
    "code": code_guard,
    "hidden": hidden_guard,
}
"""The guards that need no weights."""


def check_lines(name: str, lines: Iterable[str], guard: Guard | None = None) -> Iterator[dict[str, Any]]:
    """Yields the verdict of each line that is not blank, with the row's `id` if it has one.

    `name` is "content", "injection", "code" or "hidden"; `guard` is one on weights, None takes the one without.
    Raises PromptError that names the line, the field and the remedy.
    """
    if name not in GUARDS:
        raise PromptError(f"guard: {name!r} is unknown; choose one of {', '.join(GUARDS)}")
    guard = guard or GUARDS[name]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(number, line)
            named = {"id": row["id"]} if "id" in row else {}
            yield named | judge(guard, _context(name, row, number)).to_dict()


def _context(name: str, row: Mapping[str, Any], number: int) -> Context:
    if name == "code":
        language = row.get("language")
        if language is not None and not isinstance(language, str):
            raise PromptError(f"line {number}: language is {language!r}; give a name such as python, or leave it out")
        return Context.of_text(_field(row, number, "code", "text"), "code", language)
    if "messages" in row and "text" not in row:
        return _conversation(row["messages"], f"line {number}: messages")
    return Context.of_text(_field(row, number, "text"))


def _conversation(documents: object, where: str) -> Context:
    if not isinstance(documents, list) or not documents:
        raise PromptError(f"{where} is {documents!r}; give a list of messages, the one to be judged last")
    messages = tuple(
        Message.from_dict(document, where=f"{where}[{i}]", paths=False) for i, document in enumerate(documents)
    )
    points: dict[str, Point] = {"assistant": "assistant_output", "tool": "tool_result", "system": "system"}
    return Context(point=points.get(messages[-1].role, "user_input"), messages=messages)


def _row(number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"line {number}: is not JSON ({error}); write one object a line") from error
    if not isinstance(row, dict):
        raise PromptError(f'line {number}: is a {type(row).__name__}; write an object such as {{"text": "..."}}')
    return row


def _field(row: Mapping[str, Any], number: int, *names: str) -> str:
    for name in names:
        if name in row:
            if not isinstance(row[name], str):
                raise PromptError(f"line {number}: {name} is {row[name]!r}; give a text")
            return str(row[name])
    raise PromptError(f"line {number}: has no field {' or '.join(names)}; its fields are {', '.join(row) or 'none'}")
