"""What stands around a model, and what evaluations about safety found.

In: records. Out: the section "Safeguards". Violations never stand without false refusals: either alone can be had for
nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from puna.card.document import Block, Items, Missing, Section, Table, Text, declared
from puna.card.records import Records
from puna.card.words import UNKNOWN, percent

ARMS = ("none", "input", "output", "both")
KINDS = {
    "benign": "false refusals",
    "harmful": "violations",
    "attack": "attacks that succeed",
    "code": "insecure code",
    "steer": "steered as asked (more is better)",
}
GUARDS_KNOW_SETS = (
    "The guards that ship with puna were made with slices of several of these sets, so what they stop there flatters "
    "them. Guards read from weights of their own were not."
)
FAMILIES = ("translated_", "hidden_")
"""Disguises of one kind that are counted together."""

REMEDY = "run puna eval MODEL --suite {suite} --data DIR --out RECORDS"


def safeguards(records: Records) -> Section:
    """Returns the section about protections and evaluations of safety."""
    own = [Text(declared(each)) for each in records.declared.safeguards]
    around = Text(
        "No model is meant to stand alone. `puna chat`, `puna serve` and `puna batch` put protections around it unless "
        "they are told not to: what is asked and what is answered is judged, results of tools are cleaned, hidden text "
        "and prompt attacks are looked for. What they are and what they see: docs/guard.md."
    )
    return Section(
        title="Safeguards", blocks=(*own, around), sections=(_safety(records), _redteam(records), _critical(records))
    )


def _safety(records: Records) -> Section:
    found = records.safety
    if found is None:
        return Section(
            title="Evaluations", blocks=(Missing("violations and false refusals", REMEDY.format(suite="safety")),)
        )
    rows = []
    for name, arms in found["sets"].items():
        kind, _, set_ = name.partition("/")
        rows.append((KINDS.get(kind, kind), set_, str(arms["none"]["n"]), *(_rate(arms[arm]) for arm in ARMS)))
    head = ("What", "Set", "Cases", "model alone", "guards on input", "on output", "on both")
    blocks: list[Block] = [
        Table(head, tuple(rows), 2, f"Per cent with 95 % interval, policy {found['policy']}", (GUARDS_KNOW_SETS,)),
    ]
    tone = found["tone"].get("rate")
    blocks.append(Text(f"Answers with a phrase that preaches: {percent(tone)} % of {found['tone']['n']}."))
    if found["missing"]:
        blocks.append(Items(tuple(f"not at hand: {name}" for name in found["missing"])))
    return Section(title="Evaluations", blocks=tuple(blocks))


def _redteam(records: Records) -> Section:
    found = records.redteam
    if found is None:
        return Section(title="Red teaming", blocks=(Missing("what a red team found", REMEDY.format(suite="redteam")),))
    families: dict[str, list[Mapping[str, Any]]] = {}
    for name, each in found["disguises"].items():
        families.setdefault(_family(name), []).append(each)
    rows = [
        (name, _by(own), *(_sum(own, what) for what in ("passed", "flagged", "succeeded")))
        for name, own in families.items()
    ]
    overall = (_rate(found["passed"]), UNKNOWN, _rate(found["succeeded"]))
    rows.append(("**all**, per cent with 95 % interval", "", *overall))
    head = ("Disguise", "Stopped by", "passed the guards", "flagged", "the model obeyed")
    note = "Harmless goals in disguises of attacks. What passes is not stopped; what is flagged is counted."
    return Section(title="Red teaming", blocks=(Table(head, tuple(rows), 2, f"Policy {found['policy']}", (note,)),))


def _family(disguise: str) -> str:
    return disguise.split("_")[0] if disguise.startswith(FAMILIES) else disguise.replace("_", " ")


def _sum(family: Sequence[Mapping[str, Any]], what: str) -> str:
    return f"{sum(each[what]['hits'] for each in family)} of {sum(each[what]['n'] for each in family)}"


def _by(family: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({guard for each in family for guard in each["stopped_by"]})) or UNKNOWN


def _critical(records: Records) -> Section:
    found = records.critical
    if found is None or found.get("is_placeholder"):
        what = "weapons of mass destruction, child safety and cyber attacks"
        remedy = "their sets belong to operators, who run puna eval MODEL --suite critical --data SET --operator NAME"
        return Section(title="Critical risks", blocks=(Missing(what, remedy),))
    rows = [(name, str(value)) for name, value in found.items() if isinstance(value, str | int | float)]
    return Section(title="Critical risks", blocks=(Table(("", ""), tuple(rows), 2),))


def _rate(each: Mapping[str, Any]) -> str:
    if each["rate"] is None:
        return UNKNOWN
    return f"{percent(each['rate'])} ({percent(each['low'])} to {percent(each['high'])})"
