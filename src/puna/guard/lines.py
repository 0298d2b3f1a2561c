"""One verdict a line: guards over a file of JSON lines, as the command `puna guard` runs them.

In: JSON objects, one a line, with `text`, or `code` and perhaps `language`. Out: one verdict each, in order, as a
mapping for JSON. It does not know files or the terminal.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from puna.errors import PromptError
from puna.guard import code, hidden, injection
from puna.guard.verdict import Verdict


def check_lines(guard: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the verdict of each line that is not blank, with the row's `id` if it has one.

    `guard` is "injection", "code" or "hidden". Raises PromptError that names the line, the field and the remedy.
    """
    if guard not in CHECKS:
        raise PromptError(f"guard: {guard!r} is unknown; choose one of {', '.join(CHECKS)}")
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(number, line)
            named = {"id": row["id"]} if "id" in row else {}
            yield named | CHECKS[guard](row, number).to_dict()


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


def _check_code(row: Mapping[str, Any], number: int) -> Verdict:
    language = row.get("language")
    if language is not None and not isinstance(language, str):
        raise PromptError(f"line {number}: language is {language!r}; give a name such as python, or leave it out")
    return code.check(_field(row, number, "code", "text"), language)


CHECKS: dict[str, Callable[[Mapping[str, Any], int], Verdict]] = {
    "injection": lambda row, number: injection.check(_field(row, number, "text")),
    "code": _check_code,
    "hidden": lambda row, number: hidden.check(_field(row, number, "text")),
}
