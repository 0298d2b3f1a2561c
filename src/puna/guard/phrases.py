"""What an attack on a prompt says, as patterns that leave gaps: a verb of ignoring near a word for rules, and the like.

In: a text in the form of `ngrams.normalise`. Out: which facts hold. N-grams see words that stand side by side; a fact
sees two that are up to `GAP` characters apart within a sentence. No fact decides anything by itself: the classifier
learns what each is worth ("how do I ignore the rules of a linter" has one too). The patterns are data,
`assets/guard/phrases.toml`; its order does not matter, `FACTS` and `PAIRS` say which place each fact has.
"""

import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

PATTERNS = "assets/guard/phrases.toml"
PARTS = ("first", "second")
MIN_HINT = 3
GAP = r"[^.!?。！？।\n]{0,48}?"

FACTS: tuple[str, ...] = (
    "ignoring rules",
    "something secret",
    "a secret of one's own",
    "the prompt itself",
    "asked to tell",
    "a persona without limits",
    "another mode",
    "a claim of authority",
    "an answer in disguise",
    "data of the user",
    "a hypothesis",
)
# Facts that mean more together.
PAIRS: tuple[tuple[str, str], ...] = (
    ("something secret", "asked to tell"),
    ("the prompt itself", "asked to tell"),
    ("data of the user", "asked to tell"),
    ("something secret", "an answer in disguise"),
    ("something secret", "a claim of authority"),
    ("something secret", "a hypothesis"),
    ("ignoring rules", "something secret"),
    ("ignoring rules", "the prompt itself"),
    ("ignoring rules", "data of the user"),
    ("another mode", "asked to tell"),
)
N_FACTS = len(FACTS) + len(PAIRS)


class Phrase(NamedTuple):
    """An expression, and texts one of which is in whatever it matches; none where that is not known."""

    hints: tuple[str, ...]
    expression: re.Pattern[str]

    def is_in(self, plain: str) -> bool:
        """Says whether it matches somewhere. The hints only save time: looking for a text is far faster."""
        return not (self.hints and not any(hint in plain for hint in self.hints)) and (
            self.expression.search(plain) is not None
        )


def facts(plain: str) -> list[bool]:
    """Returns for each of FACTS, then of PAIRS, whether it holds of a normalised text."""
    usable = compiled()["ascii" if plain.isascii() else "any"]
    holds = {name: any(phrase.is_in(plain) for phrase in phrases) for name, phrases in usable.items()}
    return [*holds.values(), *(holds[a] and holds[b] for a, b in PAIRS)]


@cache
def compiled() -> Mapping[str, Mapping[str, Sequence[Phrase]]]:
    """Returns the phrases of each fact: for "any" text, and for "ascii" those that such a text can match."""
    text = unicodedata.normalize("NFKC", files("puna").joinpath(*PATTERNS.split("/")).read_text("utf-8"))
    found: dict[str, dict[str, list[Phrase]]] = {kind: {name: [] for name in FACTS} for kind in ("any", "ascii")}
    for entry in tomllib.loads(text)["pattern"]:
        found["any"][entry["fact"]].append(_phrase(entry))
        latin = _latin(entry)
        if all(latin[part] for part in PARTS if part in latin):
            found["ascii"][entry["fact"]].append(_phrase(latin))
    return found


def _latin(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry without the words that have no Latin letter, which an ASCII text cannot match."""
    parts = {
        part: [word for word in entry[part] if re.search("[a-z]", re.sub(r"\\.", "", word))]
        for part in PARTS
        if part in entry
    }
    return dict(entry) | parts


def _phrase(entry: Mapping[str, Any]) -> Phrase:
    first, second = _any(entry["first"]), _any(entry.get("second", ()))
    there = f"{first}{GAP}{second}" if "second" in entry else first
    both = f"{there}|{second}{GAP}{first}" if entry.get("either_order") else there
    hints = [_hints(entry[part]) for part in PARTS if part in entry]
    return Phrase(min(filter(None, hints), key=len, default=()), re.compile(both))


def _hints(words: Sequence[str]) -> tuple[str, ...]:
    """Returns the plain beginnings of all words; nothing where one has none of three characters."""
    found = []
    for word in words:
        begins = re.match(r"(?:\\b)?([^\\()\[\]{}?*+|.^$]*)([?*{]?)", word)
        assert begins is not None, "every part may be empty"
        plain = begins[1][:-1] if begins[2] else begins[1]  # what may be missing is no hint
        if len(plain) < MIN_HINT or "|" in re.sub(r"\(.*\)|\[.*\]", "", word):
            return ()
        found.append(plain)
    return tuple(found)


def _any(words: Sequence[str]) -> str:
    """Returns an expression for any of `words`, those that begin at a word's border together, which is faster."""
    at_border = "|".join(word.removeprefix(r"\b") for word in words if word.startswith(r"\b"))
    others = "|".join(word for word in words if not word.startswith(r"\b"))
    parts = [*([rf"\b(?:{at_border})"] if at_border else []), *([others] if others else [])]
    return f"(?:{'|'.join(parts)})"
