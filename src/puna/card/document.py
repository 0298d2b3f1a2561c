"""A card as a value: sections of texts, lists and tables, before anybody decided how it looks.

Texts know three marks, as in Markdown: **strong**, `code` and [words](address). Not here: what a card says (`card`)
and how it looks (`markdown`, `page`).
"""

from dataclasses import dataclass
from typing import NamedTuple

DECLARED = "†"
"""Behind what somebody declared in `card.toml`, which no record shows."""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Items(NamedTuple):
    """A list."""

    items: tuple[str, ...]


class Table(NamedTuple):
    """A table. The first `n_words` columns hold words, the others numbers; a caption stands above, notes below."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_words: int
    caption: str = ""
    notes: tuple[str, ...] = ()


class Missing(NamedTuple):
    """What no record tells, and how to get one."""

    what: str
    remedy: str


Block = Text | Items | Table | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, what stands under it, and smaller sections."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple["Section", ...] = ()

    def missing(self) -> tuple[Missing, ...]:
        """Returns all that is missing here and below."""
        own = tuple(block for block in self.blocks if isinstance(block, Missing))
        return own + tuple(each for section in self.sections for each in section.missing())


def declared(text: str) -> str:
    """Returns a text with the mark of what was declared; nothing stays nothing."""
    return f"{text} {DECLARED}" if text else ""
