"""What a content guard answered: safe, or unsafe under these codes, or something that nobody can read.

In: the text that the model wrote. Out: an `Answer`. Only a text that says "safe" and nothing else is safe; everything
else is not, whatever it seems to mean.

Source: model card of Llama Guard 4 (first line safe or unsafe, second line codes), its printed outputs (two newlines
first, the end of turn behind).
"""

import re
from typing import NamedTuple

_SPECIAL = re.compile(r"<\|[a-z_]+\|>")
_UNSAFE = re.compile(r"unsafe(?:[\s,;:]+(?P<codes>s\d{1,3}(?:[\s,;]+s\d{1,3})*)?[\s,;.]*)?")


class Answer(NamedTuple):
    """`codes` as they were named, each once, known or not. `problem` says what could not be read, None if all could."""

    is_safe: bool
    codes: tuple[str, ...]
    problem: str | None


def read(text: str) -> Answer:
    """Returns the answer in `text`, whatever blanks, case and end of turn surround it.

    Unreadable answers, and unsafe ones without a code, are not safe and have a `problem`.
    """
    plain = _SPECIAL.sub(" ", text).strip().lower()
    if plain == "safe":
        return Answer(True, (), None)
    if (found := _UNSAFE.fullmatch(plain)) is None:
        return Answer(False, (), "unparseable")
    codes = tuple(dict.fromkeys(re.findall(r"s\d+", found["codes"] or "")))
    return Answer(False, tuple(code.upper() for code in codes), None if codes else "unsafe without a code")
