"""The end of a growing text that a guard finds something in, or may still: it must wait, and all before it need not.

In: a text. Out: how many characters at its end are undecided, from the first that counts on; 0 says that the guard
finds nothing in it that stops an answer, whatever follows. For guards by rules whose rules tell; for others nobody
can, and a fixed window must do.
"""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import NamedTuple

import regex

from puna.guard import hidden, lexicon
from puna.guard.guard import Guard, TextGuard
from puna.guard.policy import Rule


class Tail(NamedTuple):
    """How many characters at the end of a text are undecided, and whether a guard may find something in them now."""

    length: int
    is_due: bool


TailOf = Callable[[str], Tail]

_PICTORIAL = "[\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff\ufe0f]"
_LATIN, _LOOKALIKE = "[A-Za-z\u00c0-\u024f]", "[\u0370-\u03ff\u0400-\u052f]"

# What hides something, or may with what follows it, by code. Emoji and the scripts that join letters may go on at once.
MAY_HIDE: Mapping[str, str] = {
    "tag_characters": "[\U000e0000-\U000e007f]",
    "variation_selectors": "[\U000e0100-\U000e01ef]|(?<=[A-Za-z])[\ufe00-\ufe0f]"
    "|[\ufe00-\ufe0f](?:[\ufe00-\ufe0f]|\\Z)",
    "bidi_controls": "[\u202a-\u202e\u2066-\u2069]",
    # The last letter waits too: it is part of what splits letters, if something that does follows.
    "invisible_characters": f"\u00ad|[{hidden.INVISIBLE}]{{2}}|\\S\\Z|(?<!{hidden.JOINING.pattern})"
    f"(?!(?<={_PICTORIAL})\u200d{_PICTORIAL})[{hidden.INVISIBLE}]",
    "homoglyphs": rf"{_LATIN}[^\W\d_]*{_LOOKALIKE}|{_LOOKALIKE}[^\W\d_]*(?:{_LATIN}|\Z)",
    "unseen_markup": "<",
}

_WORD = regex.compile(rf"{_LATIN}+|\S")  # other scripts have no spaces, or letters that are put before words


def tail_of(guard: Guard, rule: Rule) -> TailOf | None:
    """Returns the function for a guard under a rule, None where only a fixed window helps."""
    if isinstance(guard, lexicon.LexiconGuard):
        return lexicon_tail
    if isinstance(guard, TextGuard) and guard.name == "hidden":
        return hidden_tail([code for code in MAY_HIDE if rule.codes.get(code, rule).can_stop])
    return None


def hidden_tail(codes: list[str]) -> TailOf:
    """Returns the tail from the first character on that hides something under one of `codes`, or could."""
    if not codes:
        return lambda text: Tail(0, False)
    may_hide = regex.compile("|".join(f"(?:{MAY_HIDE[code]})" for code in codes))

    def tail(text: str) -> Tail:
        first = may_hide.search(text)
        if first is None:
            return Tail(0, False)
        n = len(text) - first.start()
        return Tail(min(n + 1, len(text)), n > 1 or not first[0].isprintable())  # and the letter before it

    return tail


def lexicon_tail(text: str) -> Tail:
    """Returns the characters from the first place on where a phrase begins, whole or as far as the text goes.

    Phrases begin with words. Few words begin one, and which do is remembered, so that most texts cost a look-up a word.
    """
    length, is_due = 0, False
    for word in _WORD.finditer(text):
        start, end = int(word.start()), int(word.end())
        for phrase in _beginning_with(text[start : end + 1].lower()):
            if (match := phrase.match(text, pos=start, partial=True)) is not None:
                length = length or len(text) - start
                is_due = is_due or not match.partial
    return Tail(length, is_due)


@lru_cache(maxsize=65_536)
def _beginning_with(word: str) -> tuple["regex.Pattern[str]", ...]:
    """Returns the phrases that begin with a word and the character behind it: of most words there are none."""
    return tuple(phrase for phrase in _phrases() if phrase.match(word, partial=True))


@cache
def _phrases() -> tuple["regex.Pattern[str]", ...]:
    """Returns the lexicon's phrases, from where they begin on, for a machine that knows half a match."""
    asked = (lexicon.ASK.pattern + rule.phrase.pattern for rule in lexicon.ACTS)
    whole = (rule.phrase.pattern for rule in lexicon.RULES)
    return tuple(regex.compile(phrase, regex.IGNORECASE) for phrase in (*asked, *whole))
