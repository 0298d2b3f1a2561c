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
from typing import Any

PATTERNS = "assets/guard/phrases.toml"
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


def facts(plain: str) -> list[bool]:
    """Returns for each of FACTS, then of PAIRS, whether it holds of a normalised text."""
    usable = compiled()["ascii" if plain.isascii() else "any"]
    holds = {name: any(pattern.search(plain) for pattern in patterns) for name, patterns in usable.items()}
    return [*holds.values(), *(holds[a] and holds[b] for a, b in PAIRS)]


@cache
def compiled() -> Mapping[str, Mapping[str, Sequence[re.Pattern[str]]]]:
    """Returns the patterns of each fact: for "any" text, and for "ascii" those that such a text can match."""
    text = files("puna").joinpath(*PATTERNS.split("/")).read_text("utf-8")
    found: dict[str, dict[str, list[re.Pattern[str]]]] = {
        kind: {name: [] for name in FACTS} for kind in ("any", "ascii")
    }
    for entry in tomllib.loads(text)["pattern"]:
        pattern = re.compile(unicodedata.normalize("NFKC", _expression(entry)))
        found["any"][entry["fact"]].append(pattern)
        if all(any(word.isascii() for word in entry.get(part, "-")) for part in ("first", "second")):
            found["ascii"][entry["fact"]].append(re.compile(_expression(_ascii(entry))))
    return found


def _ascii(entry: Mapping[str, Any]) -> dict[str, Any]:
    parts = {part: [word for word in entry[part] if word.isascii()] for part in ("first", "second") if part in entry}
    return dict(entry) | parts


def _expression(entry: Mapping[str, Any]) -> str:
    first = _any(entry["first"])
    if "second" not in entry:
        return first
    second = _any(entry["second"])
    there = f"{first}{GAP}{second}"
    return f"{there}|{second}{GAP}{first}" if entry.get("either_order") else there


def _any(words: Sequence[str]) -> str:
    """Returns an expression for any of `words`, those that begin at a word's border together, which is faster."""
    at_border = "|".join(word.removeprefix(r"\b") for word in words if word.startswith(r"\b"))
    others = "|".join(word for word in words if not word.startswith(r"\b"))
    parts = [*([rf"\b(?:{at_border})"] if at_border else []), *([others] if others else [])]
    return f"(?:{'|'.join(parts)})"
