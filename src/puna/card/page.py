"""A card as a page of HTML that needs nothing else: no script, no font, no picture from anywhere, light and dark.

In: a title and sections. Out: a text. Everything that comes from records is escaped; links lead to http addresses or
into the page alone.
"""

import html
import re
from collections.abc import Iterator, Sequence

from puna.card.document import Block, Items, Missing, Section, Table, Text

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d1b18; --soft: #6a645a; --line: #d9d3c7; --ground: #fbfaf7; --mark: #8a5a12;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e5dc; --soft: #a59e91; --line: #423d35; --ground: #191714; --mark: #e0b060; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.2rem 5rem; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 2.2rem; line-height: 1.15; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0; font-size: .92rem; }
a { color: inherit; text-decoration-color: var(--mark); text-underline-offset: .15em; }
p, ul { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1rem; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .6rem 0 .3rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
.missing { border-left: 3px solid var(--mark); padding: .3rem .9rem; color: var(--soft); }
.notes, footer { color: var(--soft); font-size: .88rem; }
code { font: .92em ui-monospace, monospace; }
@media print { nav { display: none; } body { max-width: none; } }
"""


def page(title: str, lead: str, sections: Sequence[Section], foot: Sequence[str]) -> str:
    """Returns a whole page."""
    links = "".join(f'<a href="#{_anchor(each.title)}">{html.escape(each.title)}</a>' for each in sections)
    body = "".join("".join(_section(each, 2)) for each in sections)
    feet = "".join(f"<p>{_inline(each)}</p>" for each in foot)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}: model card</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n'
        f"<h1>{html.escape(title)}</h1><p>{_inline(lead)}</p><nav>{links}</nav>{body}<footer>{feet}</footer>\n</html>\n"
    )


def _section(section: Section, level: int) -> Iterator[str]:
    yield f'<h{level} id="{_anchor(section.title)}">{html.escape(section.title)}</h{level}>'
    yield from (_block(block) for block in section.blocks)
    for each in section.sections:
        yield from _section(each, level + 1)


def _block(block: Block) -> str:
    match block:
        case Text(words):
            return f"<p>{_inline(words)}</p>"
        case Items(items):
            return f"<ul>{''.join(f'<li>{_inline(each)}</li>' for each in items)}</ul>"
        case Missing(what, remedy):
            return f'<p class="missing">Not recorded: {_inline(what)}. To have it: {_inline(remedy)}.</p>'
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if i < table.n_words else ' class="number"' for i in range(len(cells))]
        inner = (f"<{tag}{kind}>{_inline(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    caption = f"<caption>{_inline(table.caption)}</caption>" if table.caption else ""
    head = f"<thead>{row(table.head, 'th')}</thead>" if any(table.head) else ""
    body = "".join(row(each, "td") for each in table.rows)
    notes = "".join(f"<li>{_inline(note)}</li>" for note in table.notes)
    below = f'<ul class="notes">{notes}</ul>' if notes else ""
    return f'<div class="wide"><table>{caption}{head}<tbody>{body}</tbody></table></div>{below}'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _inline(text: str) -> str:
    """Returns a text with its three marks as HTML, all else escaped."""
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return re.sub(r"\[([^\]]+)\]\(((?:https?://|#)[^)\s]+)\)", r'<a href="\2">\1</a>', escaped)
