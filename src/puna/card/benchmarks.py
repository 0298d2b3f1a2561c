"""What a model can do: the card's benchmark tables, base and instruct, and what its training held out.

In: records. Out: the section "Benchmarks". A value stands with its interval and number of items, with what forbids to
compare it with the published columns, and with "at chance" where guessing does as well.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.card.document import Block, Missing, Section, Table, Text
from puna.card.records import Records
from puna.card.words import UNKNOWN, language, percent
from puna.records import Evaluation

TITLES = {"base": "Pre-trained models", "chat": "Instruction tuned models", "": "Other tasks"}
_SHARE = re.compile(r"[\d,]+ of [\d,]+ items")  # a difference that the number of items shows by itself
REMEDY = "run puna eval MODEL --suite card --data DIR --out RECORDS"


def benchmarks(records: Records) -> Section:
    """Returns the section with all results."""
    sections = []
    for table, title in TITLES.items():
        rows = [each for each in records.evaluations if each.table == table]
        if rows:
            sections.append(Section(title=title, blocks=(_table(rows), *_circumstances(rows))))
    if not records.evaluations:
        sections.append(Section(title="Published benchmarks", blocks=(Missing("benchmarks of the card", REMEDY),)))
    if records.held_out:
        sections.append(_held_out(records))
    return Section(title="Benchmarks", sections=tuple(sections))


def _table(evaluations: Sequence[Evaluation]) -> Table:
    widest = max(evaluations, key=lambda each: len(each.published))
    columns = list(dict.fromkeys(model for each in (widest, *evaluations) for model in each.published))
    names = [each.benchmark for each in evaluations]
    notes: list[str] = []
    rows = []
    for each in evaluations:
        published = [each.published.get(model, UNKNOWN) for model in columns]
        interval = UNKNOWN if each.low is None else f"{value(each, each.low)} to {value(each, each.high)}"
        name = each.benchmark if names.count(each.benchmark) == 1 else f"{each.benchmark}: {each.task}"
        row = (name, str(each.shots), each.metric, _remarks(each, notes))
        rows.append((*row, value(each, each.score), interval, _n(each), *published))
    head = ("Benchmark", "# Shots", "Metric", "Remarks", evaluations[0].model, "95 %", "n", *columns)
    return Table(head, tuple(rows), 4, "", tuple(f"[{i}] {note}" for i, note in enumerate(notes, start=1)))


def value(each: Evaluation, number: float | None) -> str:
    """Returns a number in the unit of an evaluation, shares in per cent."""
    if number is None:
        return UNKNOWN
    return percent(number) if each.unit == "share" else f"{number:.4g}"


def _n(each: Evaluation) -> str:
    return str(each.n) if each.n_published is None else f"{each.n:,} of {each.n_published:,}"


def _remarks(each: Evaluation, notes: list[str]) -> str:
    said = ["at chance"] if each.at_chance else []
    if each.unscored:
        said.append(f"{each.unscored} unscored")
    if each.differences and each.published:
        said.append("not comparable")
    marks = []
    for text in (*(text for text in each.differences if not _SHARE.fullmatch(text)), *each.notes):
        if text not in notes:
            notes.append(text)
        marks.append(f"[{notes.index(text) + 1}]")
    return " ".join(filter(None, [", ".join(said), *marks]))


def _circumstances(evaluations: Sequence[Evaluation]) -> tuple[Block, ...]:
    first, days = evaluations[0], sorted({each.date[:10] for each in evaluations})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    files = f", files {first.model_hash}" if first.model_hash else ""
    sentence = "Shares are in per cent; intervals are at 95 %; n is what was scored."
    published = (
        " The other columns are the ones that Meta published." if any(each.published for each in evaluations) else ""
    )
    return (Text(f"{sentence}{published} Measured with puna {first.version}, {when}{files}."),)


# What training held out ---------------------------------------------------------------------------------------------


def _held_out(records: Records) -> Section:
    label, *others = records.held_out
    own, said = records.held_out[label], records.declared.held_out
    exact = own.get("exactness", {})
    sets = {name: exact[name] for name in (*said, *exact) if name in exact}
    blocks: list[Block] = []
    if sets:
        head = ("Set", "Questions", label, "without the picture", *others)
        rows = []
        for name, languages in sets.items():
            every = languages["all"]
            baselines = [_exact(records.held_out[other], name) for other in others]
            rows.append(
                (
                    _named(name, said),
                    str(every["n"]),
                    _share(every),
                    percent(every["score_without_picture"]),
                    *baselines,
                )
            )
        blocks.append(
            Table(head, tuple(rows), 1, "Greedy answers that equal an accepted one, in per cent ± standard error")
        )
        blocks.append(_by_language(sets))
    for name, texts in own.get("compression", {}).items():
        blocks.append(_texts(name, texts, {other: records.held_out[other] for other in others}, said))
    blocks.append(Text("Without the picture, the same question is asked blind: what wording and frequency give away."))
    return Section(title="Held out of its training", blocks=tuple(blocks))


def _named(name: str, said: Mapping[str, str]) -> str:
    return f"{name}: {said[name]} †" if name in said else name


def _share(each: Mapping[str, Any]) -> str:
    return f"{percent(each['score'])} ± {percent(each['stderr'])}"


def _exact(record: Mapping[str, Any], name: str) -> str:
    found = record.get("exactness", {}).get(name, {}).get("all")
    return UNKNOWN if found is None else percent(found["score"])


def _by_language(sets: Mapping[str, Mapping[str, Any]]) -> Table:
    codes = sorted({code for languages in sets.values() for code in languages} - {"all"})
    rows = [(language(code), *(_cell(languages.get(code)) for languages in sets.values())) for code in codes]
    return Table(("Language", *sets), tuple(rows), 1, "The same by language, in per cent of so many questions")


def _cell(each: Mapping[str, Any] | None) -> str:
    return UNKNOWN if each is None else f"{percent(each['score'])} of {each['n']}"


def _texts(
    name: str, texts: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], said: Mapping[str, str]
) -> Table:
    rows = []
    for code in sorted(texts, key=lambda each: (each != "all", each)):
        each = texts[code]
        baselines = [_bits(other, name, code) for other in others.values()]
        numbers = (f"{each['bits_per_byte']:.3f}", f"{each['bits_per_byte_without_picture']:.3f}", *baselines)
        rows.append(("**all**" if code == "all" else language(code), str(each["n"]), f"{each['n_bytes']:,}", *numbers))
    head = ("Language", "Texts", "Bytes", "bits per byte", "without pictures", *others)
    return Table(head, tuple(rows), 1, f"{_named(name, said)}: bits per byte, lower is better")


def _bits(record: Mapping[str, Any], name: str, code: str) -> str:
    found = record.get("compression", {}).get(name, {}).get(code)
    return UNKNOWN if found is None else f"{found['bits_per_byte']:.3f}"
