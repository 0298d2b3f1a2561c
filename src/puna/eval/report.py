"""Evaluations as the card's tables: ours beside the four published columns, in Markdown and in HTML.

In: records. Out: texts. Every value stands with its 95 % interval and number of items, with what it must not be
compared with, and with "at chance" where the interval does not exclude guessing.
"""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from puna.eval.published import COLUMNS, ROWS, TITLES, Row
from puna.records import Evaluation

EMPTY = "–"

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 92rem; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.ours { font-weight: 600; }
td.remarks, ol { color: #555; font-size: .9em; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #e6e6e6; } th, td { border-color: #444; }
  td.remarks, ol { color: #aaa; } }
"""


class Table(NamedTuple):
    """A table as texts. `n_words` columns at the beginning hold words, the last one marks, all others numbers.

    `notes` stand below; marks name them by number, from 1.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_words: int
    notes: tuple[str, ...]


def tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Returns the card's tables as far as they were run, and one of all other tasks."""
    found = {each.task: each for each in evaluations}
    made = []
    for table, title in TITLES.items():
        rows = [row for row in ROWS if row.table == table and any(task in found for task in row.tasks)]
        if rows:
            ours = next(found[task].model for row in rows for task in row.tasks if task in found)
            head = ("Category", "Benchmark", "# Shots", "Metric", ours, "95 %", "n", *COLUMNS[table], "Remarks")
            notes = _Notes()
            made.append(Table(title, head, tuple(_card_rows(rows, found, notes)), 4, tuple(notes)))
    if others := [each for each in evaluations if not each.table]:
        head = ("Task", "# Shots", "Metric", others[0].model, "95 %", "n", "Remarks")
        notes = _Notes()
        rows_of_others = tuple(_other_row(each, notes) for each in others)
        made.append(Table("Other tasks", head, rows_of_others, 3, tuple(notes)))
    return made


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Returns the report as Markdown."""
    parts = []
    for table in tables(evaluations):
        n_numbers = len(table.head) - table.n_words - 1
        rule = [":---"] * table.n_words + ["---:"] * n_numbers + [":---"]
        lines = [table.head, rule, *table.rows]
        parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
        if table.notes:
            parts.append("\n".join(f"{i}. {note}" for i, note in enumerate(table.notes, start=1)))
    parts.append("\n".join(f"- {line}" for line in circumstances(evaluations)))
    return "\n\n".join(parts) + "\n"


def page(evaluations: Sequence[Evaluation], viewers: Iterable[str] = ()) -> str:
    """Returns the report as a page of HTML that needs nothing else; `viewers` are tasks whose items have one beside."""
    parts = [_html_table(table) for table in tables(evaluations)]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in circumstances(evaluations))
    links = "".join(f'<li><a href="{html.escape(name)}.html">{html.escape(name)}</a></li>' for name in viewers)
    items = f"<h2>Items</h2><ul>{links}</ul>" if links else ""
    title = f"{evaluations[0].model}, evaluated" if evaluations else "No evaluation"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{html.escape(title)}</h1>'
        f"{''.join(parts)}<ul>{lines}</ul>{items}</html>\n"
    )


def circumstances(evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns what holds for the whole report, a line each."""
    if not evaluations:
        return []
    first = evaluations[0]
    who = f"{first.model}, files {first.model_hash}" if first.model_hash else first.model
    shared = [f"{key} {value}" for key, value in first.settings.items() if key not in PER_TASK and value is not None]
    dates = sorted({each.date for each in evaluations})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    data = sorted({each.data for each in evaluations if each.data})
    return [
        f"Model: {who}. Date: {when}. puna {first.version}.",
        f"Settings: {', '.join(shared) or 'as the tasks have them'}. Data: {'; '.join(data) or 'none'}.",
        "Shares are in per cent. Intervals are at 95 %, clustered where items share a source; n is what was scored. "
        "The other columns are Meta's, from the model card.",
    ]


PER_TASK = ("max_new_tokens", "temperature", "samples")


def value(each: Evaluation, number: float | None) -> str:
    """Returns a value of an evaluation as its table shows it."""
    if number is None:
        return EMPTY
    return f"{100 * number:.1f}" if each.unit == "share" else f"{number:.4g}"


class _Notes(list[str]):
    """The notes of a table, each once."""

    def mark(self, text: str) -> str:
        """Returns the mark that leads to a note."""
        if text not in self:
            self.append(text)
        return f"[{self.index(text) + 1}]"


def _marks(ours: Sequence[Evaluation], notes: _Notes) -> str:
    """Returns what must be said beside the values of a row, in a few words, with their reasons in notes."""
    said = ["at chance"] if all(each.at_chance for each in ours) else []
    n_unscored = sum(each.unscored for each in ours)
    if n_unscored:
        said.append(f"{n_unscored} unscored")
    why = [notes.mark(text) for each in ours for text in each.differences]
    if why and any(each.score is not None for each in ours):
        said.append(f"not comparable {' '.join(dict.fromkeys(why))}")
    elif why:
        said.append(" ".join(dict.fromkeys(why)))
    if about := [notes.mark(text) for each in ours for text in each.notes]:
        said.append(f"see {' '.join(dict.fromkeys(about))}")
    return ", ".join(said)


def _card_rows(rows: Sequence[Row], found: dict[str, Evaluation], notes: _Notes) -> Iterable[tuple[str, ...]]:
    category = ""
    for row in rows:
        ours = [found[task] for task in row.tasks if task in found]
        marks = _marks(ours, notes)
        yield (
            row.category if row.category != category else "",
            row.benchmark,
            row.shots,
            row.metric,
            "/".join(value(each, each.score) for each in ours),
            "/".join(_interval(each) for each in ours),
            "/".join(str(each.n) for each in ours),
            *(text or EMPTY for text in row.values),
            marks if len(ours) == len(row.tasks) else f"{ours[0].task} only, {marks}",
        )
        category = row.category


def _other_row(each: Evaluation, notes: _Notes) -> tuple[str, ...]:
    unit = "" if each.unit == "share" else f", {each.unit}"
    numbers = (value(each, each.score), _interval(each), str(each.n))
    return (each.task, str(each.shots), each.metric + unit, *numbers, _marks([each], notes))


def _interval(each: Evaluation) -> str:
    return EMPTY if each.low is None else f"{value(each, each.low)}..{value(each, each.high)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _html_table(table: Table) -> str:
    n = len(table.head)
    kinds = ["word"] * table.n_words + ["number ours"] + ["number"] * (n - table.n_words - 2) + ["remarks"]
    head = "".join(f'<th class="{kind}">{html.escape(text)}</th>' for kind, text in zip(kinds, table.head, strict=True))
    rows = "".join(f"<tr>{_html_cells(kinds, row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<ol>{notes}</ol>"
    )


def _html_cells(kinds: Sequence[str], row: Sequence[str]) -> str:
    return "".join(f'<td class="{kind}">{html.escape(text)}</td>' for kind, text in zip(kinds, row, strict=True))
