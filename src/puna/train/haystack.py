"""Long documents made of texts, with things in them that are asked for at the end: what a long-context stage reads.

In: texts, a tokenizer, lengths in tokens, a seed. Out: documents as `store` reads them, of three sources that a recipe
can weigh against each other:

    needle   sentences that give numbers to made-up names, hidden anywhere; at the end some names are asked for
    copy     records of words from the text, hidden anywhere; at the end some are repeated word by word
    text     the text alone, which goes on from document to document

The same inputs, lengths and seed give the same documents. Names and numbers are drawn here, so nothing but the document
can help to find them; sentences and names are others than those of the evaluation's tasks.
Not here: what is done with them (`recipe`, [context]), and how well a model finds them (`found`).
Source: the ideas are Kamradt 2023, "Needle In A Haystack", and Hsieh et al. 2024 (RULER, arXiv 2404.06654).
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import ConfigError
from puna.prompt.tokenizer import Tokenizer
from puna.train.prepare import documents
from puna.train.recipe import require

KINDS = ("needle", "copy", "text")
FIRST = ("B", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z")
VOWELS = "aeiou"
N_WORDS = 4  # of a record
LONGEST_PIECE = 200  # characters; longer lines are cut at a blank, so that things can be hidden anywhere
ENDS = 2  # tokens that begin and end a document

Count = Callable[[str], int]
"""How many tokens a text has."""


class Part(NamedTuple):
    """A stretch of a document. is_asked: whether it can be known from what stands before it, and is what was asked."""

    text: str
    is_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """lengths: tokens of a document at most, taken in turn; n: documents of each kind; told, asked: things that a
    document holds and how many of them it asks for. only_asked: nothing but what was asked for is learnt."""

    lengths: tuple[int, ...]
    n: int
    told: int = 4
    asked: int = 2
    seed: int = 1
    only_asked: bool = False

    def __post_init__(self) -> None:
        for length in self.lengths:
            require(length > 0, "length", length, "positive")
        require(bool(self.lengths), "length", "none", "at least one")
        require(self.n > 0, "documents", self.n, "positive")
        require(0 < self.asked <= self.told, "asked", self.asked, f"within 1..{self.told}, the things told")


def write(inputs: Sequence[Path], tokenizer: Tokenizer, wish: Wish, out: Path) -> dict[str, Any]:
    """Writes the documents as JSON lines to `out`, whole or not at all. Returns counts by source, and how often the
    texts were read through.

    Raises ConfigError where there is no text, or where a length is too short for what is to be hidden in it.
    """
    pieces = Pieces(inputs)
    counts: dict[str, dict[str, int]] = {kind: {"documents": 0, "characters": 0} for kind in KINDS}
    partial = out.with_name(f"{out.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for number, (kind, parts) in enumerate(made(iter(pieces), tokenizer, wish)):
            counts[kind]["documents"] += 1
            counts[kind]["characters"] += sum(len(part.text) for part in parts)
            line = _record(f"{kind}-{number}", kind, parts, only_asked=wish.only_asked)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(out)
    return {"sources": counts, "times_read": pieces.times}


def made(pieces: Iterator[str], tokenizer: Tokenizer, wish: Wish) -> Iterator[tuple[str, list[Part]]]:
    """Yields source and parts of each document, the kinds in turn, out of an endless line of pieces of text."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    for number in range(wish.n):
        length = wish.lengths[number % len(wish.lengths)]
        for kind in KINDS:
            draw = random.Random(f"{kind}/{wish.seed}/{number}")
            hidden = _hidden(kind, draw, wish, pieces)
            yield kind, _document(draw, hidden, wish.asked, length, pieces, count)


def name(draw: random.Random) -> str:
    """Returns a made-up name."""
    return "".join(draw.choice(FIRST).lower() + draw.choice(VOWELS) for _ in range(2)).capitalize()


class Hidden(NamedTuple):
    """Something told somewhere in a document: `asks` is repeated at its end, and `answer` is then to follow."""

    asks: str
    answer: str

    @property
    def told(self) -> str:
        return f"{self.asks} {self.answer}"


class Pieces:
    """The texts of files in pieces, a sentence or so each, again and again. times: how often they were begun."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        self.files = documents.find(inputs)
        self.times = 0

    def __iter__(self) -> Iterator[str]:
        """Raises ConfigError when there is no text."""
        while True:
            self.times += 1
            found = False
            for file in self.files:
                for document in documents.read(file.path):
                    for piece in _cut(document.text or ""):
                        found = True
                        yield piece
            if not found:
                raise ConfigError(f"{self.files[0].path}: no text in it; name files with text")


def _cut(text: str) -> Iterator[str]:
    """Yields the lines of a text without the blank ones, long ones in pieces that end at sentences or blanks."""
    for line in text.splitlines():
        rest = line.strip()
        while len(rest) > LONGEST_PIECE:
            end = max(rest.rfind(". ", 0, LONGEST_PIECE) + 1, 0) or rest.rfind(" ", 1, LONGEST_PIECE)
            end = end if end > 0 else LONGEST_PIECE
            yield rest[:end]
            rest = rest[end:].strip()
        if rest:
            yield rest


def _hidden(kind: str, draw: random.Random, wish: Wish, pieces: Iterator[str]) -> list[Hidden]:
    """Returns what a document of this kind tells, each with a name of its own."""
    if kind == "text":
        return []
    names: dict[str, None] = {}
    while len(names) < wish.told:
        names[name(draw)] = None
    if kind == "needle":
        return [Hidden(f"The number of {each} is", f"{draw.randrange(1000, 10_000)}.") for each in names]
    words = _words(pieces, wish.told * N_WORDS)
    draw.shuffle(words)
    return [Hidden(f"{each}:", " ".join(words[i :: wish.told]) + ".") for i, each in enumerate(names)]


def _record(document_id: str, kind: str, parts: Sequence[Part], *, only_asked: bool) -> dict[str, Any]:
    """Returns a line of a corpus."""
    content: list[dict[str, Any]] = [{"type": "text", "text": part.text} for part in parts]
    if only_asked:
        for line, part in zip(content, parts, strict=True):
            line["learnt"] = part.is_asked or kind == "text"
    return {"id": document_id, "source": kind, "content": content}


def _words(pieces: Iterator[str], n: int) -> list[str]:
    words: list[str] = []
    while len(words) < n:
        words += (word for each in next(pieces).split() if (word := each.strip(".,;:!?()\"'")))
    return words[:n]


def _document(
    draw: random.Random, hidden: Sequence[Hidden], n_asked: int, length: int, pieces: Iterator[str], count: Count
) -> list[Part]:
    """Returns a document of at most `length` tokens: text with what is hidden in it, then what is asked."""
    questions: list[Part] = []
    for each in draw.sample(hidden, min(n_asked, len(hidden))):
        questions += [Part(f"\n{each.asks}"), Part(f" {each.answer}", is_asked=True)]
    told = [each.told for each in hidden]
    left = length - ENDS - sum(count(part.text) for part in questions) - sum(count(f" {text}") for text in told)
    if left < 0:
        raise ConfigError(f"length: {length} tokens cannot hold what is told and asked, {-left} are missing; raise it")
    hay: list[str] = []
    for piece in pieces:
        left -= count(f" {piece}")
        if left < 0:
            break
        hay.append(piece)
    for text in told:
        hay.insert(draw.randint(0, len(hay)), text)
    return [Part(" ".join(hay)), *questions]
