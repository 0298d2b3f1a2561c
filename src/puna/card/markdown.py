"""A card as Markdown, as the hub and editors show it.

In: a title and sections. Out: a text. Not here: the head that the hub reads (`front`).
"""

from collections.abc import Iterator, Sequence

from puna.card.document import Block, Items, Missing, Section, Table, Text


def text(title: str, lead: str, sections: Sequence[Section], foot: Sequence[str]) -> str:
    """Returns a whole card below its front matter."""
    parts = [f"# {title}", lead, *(part for section in sections for part in _section(section, 2))]
    return "\n\n".join([*parts, "---", *foot]) + "\n"


def _section(section: Section, level: int) -> Iterator[str]:
    yield f"{'#' * level} {section.title}"
    yield from (_block(block) for block in section.blocks)
    for each in section.sections:
        yield from _section(each, level + 1)


def _block(block: Block) -> str:
    match block:
        case Text(words):
            return words
        case Items(items):
            return "\n".join(f"- {each}" for each in items)
        case Missing(what, remedy):
            return f"*Not recorded: {what}.* To have it: {remedy}."
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    rule = [":---"] * table.n_words + ["---:"] * (len(table.head) - table.n_words)
    rows = [table.head, rule, *table.rows]
    lines = [f"| {' | '.join(each.replace('|', chr(92) + '|') for each in row)} |" for row in rows]
    parts = [f"**{table.caption}**"] if table.caption else []
    parts.append("\n".join(lines))
    if table.notes:
        parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts)
