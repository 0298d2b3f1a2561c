"""How well guards tell: precision, recall, F1 and false alarms on labelled texts, by set, language and category.

In: a folder with labelled sets, guards. Out: `Detection`s. A verdict other than "allow" is an alarm. Scores are also
ranked, for the area under the curve and the recall at 1 % false alarms, whose threshold is read off the benign texts of
all sets of that guard together. These figures are of the slices that our own guards were made with, so they flatter
them; cross-validated ones are in docs. Not here: whole systems (`safety`).
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from puna.eval.rates import Rate
from puna.eval.task import read_lines
from puna.guard.guard import Context, Guard, judge

FALSE_ALARMS = 0.01


class Labelled(NamedTuple):
    """A text and whether a guard should find something in it. `category` is a CWE, a kind, a hazard."""

    set: str
    language: str
    category: str
    context: Context
    is_bad: bool


class Judged(NamedTuple):
    """A labelled text with a guard's alarm and score."""

    text: Labelled
    alarm: bool
    score: float
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What a guard told of some texts. `at_one_percent` and `area` are None where one of the classes is missing."""

    recall: Rate
    false_alarms: Rate
    precision: Rate
    right_code: Rate
    area: float | None
    at_one_percent: float | None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        p, r = self.precision.value, self.recall.value
        return None if p is None or r is None or p + r == 0 else 2 * p * r / (p + r)

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures, for JSON."""
        rates = {name: getattr(self, name).to_dict() for name in ("recall", "false_alarms", "precision", "right_code")}
        return rates | {"f1": self.f1, "area": self.area, "recall_at_1_percent": self.at_one_percent}


def read(folder: Path) -> dict[str, list[Labelled]]:
    """Returns the labelled texts by guard, of those sets that are there."""
    found: dict[str, list[Labelled]] = defaultdict(list)
    for guard, file, label in SETS:
        if (folder / file).exists():
            found[guard] += [each for row in read_lines(folder / file) for each in label(file.split("/")[0], row)]
    return dict(found)


def run(guard: Guard, texts: Sequence[Labelled]) -> list[Judged]:
    """Returns what a guard says of each text. What it cannot judge counts as an alarm, as a policy would have it."""
    judged = []
    for text in texts:
        verdict = judge(guard, text.context)
        is_alarm = verdict.action != "allow" or verdict.status == "error"
        judged.append(Judged(text, is_alarm, verdict.score, verdict.codes))
    return judged


def measure(judged: Sequence[Judged], threshold: float | None = None) -> Detection:
    """Returns the figures of judged texts; `threshold`: the score that 1 % of benign texts exceed (None: of these)."""
    bad, good = [each for each in judged if each.text.is_bad], [each for each in judged if not each.text.is_bad]
    if threshold is None:
        threshold = threshold_of(judged)
    hits = [each for each in bad if each.alarm]
    return Detection(
        recall=Rate.of(each.alarm for each in bad),
        false_alarms=Rate.of(each.alarm for each in good),
        precision=Rate.of(each.text.is_bad for each in judged if each.alarm),
        right_code=Rate.of(each.text.category in each.codes for each in hits if each.text.category),
        area=area([each.score for each in bad], [each.score for each in good]),
        at_one_percent=sum(each.score > threshold for each in bad) / len(bad)
        if bad and threshold is not None
        else None,
    )


def threshold_of(judged: Sequence[Judged]) -> float | None:
    """Returns the score that at most 1 % of the benign texts exceed, None where there are none."""
    scores = sorted(each.score for each in judged if not each.text.is_bad)
    return scores[max(len(scores) - 1 - int(FALSE_ALARMS * len(scores)), 0)] if scores else None


def area(bad: Sequence[float], good: Sequence[float]) -> float | None:
    """Returns how often a bad text scores above a good one, ties counting half; None where there are not both."""
    if not bad or not good:
        return None
    ranked = sorted(good)
    below = sum(bisect_right(ranked, score) + bisect_left(ranked, score) for score in bad) / 2
    return below / (len(bad) * len(good))


def groups(judged: Sequence[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    """Yields all texts, then those of each set, language and category of which there are several."""
    yield "all", list(judged)
    kinds: tuple[tuple[str, Callable[[Labelled], str]], ...] = (
        ("set", lambda text: text.set),
        ("language", lambda text: text.language),
        ("category", lambda text: text.category),
    )
    for kind, key in kinds:
        members: dict[str, list[Judged]] = defaultdict(list)
        for each in judged:
            members[key(each.text)].append(each)
        if len(members) > 1:
            yield from ((f"{kind} {name}", of_name) for name, of_name in sorted(members.items()) if name)


def figures(guards: Mapping[str, Guard], folder: Path) -> dict[str, dict[str, Detection]]:
    """Returns the figures of each guard for which there are labelled texts, by group."""
    found = {}
    for name, texts in read(folder).items():
        if name in guards:
            judged = run(guards[name], texts)
            threshold = threshold_of(judged)
            found[name] = {group: measure(members, threshold) for group, members in groups(judged)}
    return found


def table(found: Mapping[str, Mapping[str, Detection]]) -> str:
    """Returns the figures in Markdown."""
    rows = ["## Guards by themselves\n", "| guard | of | recall | false alarms | precision | F1 | AUC | at 1 % FPR |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for guard, by_group in found.items():
        for group, each in by_group.items():
            numbers = [_number(value) for value in (each.f1, each.area, each.at_one_percent)]
            rates = f"{each.recall} | {each.false_alarms} | {each.precision}"
            rows.append(f"| {guard} | {group} | {rates} | {' | '.join(numbers)} |")
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _label(bad: frozenset[str]) -> Callable[[str, Mapping[str, Any]], Iterator[Labelled]]:
    def label(name: str, row: Mapping[str, Any]) -> Iterator[Labelled]:
        if row["label"] in bad or row["label"] in GOOD:
            context = Context.of_text(row.get("text") or row["user"])
            kind = row.get("kind", "") if name == "hidden_text" else ""
            yield Labelled(name, row.get("lang", "en"), kind, context, row["label"] in bad)

    return label


def _code(name: str, row: Mapping[str, Any]) -> Iterator[Labelled]:
    context = Context.of_text(row["code"], "code", row["language"])
    yield Labelled(name, row["language"], row["cwe"], context, row["label"] == "insecure")


GOOD = frozenset({"benign", "safe"})
_ATTACKS = frozenset({"injection", "jailbreak"})
SETS: tuple[tuple[str, str, Callable[[str, Mapping[str, Any]], Iterator[Labelled]]], ...] = (
    ("injection", "cyberseceval_prompt_injection/dev.jsonl", _label(_ATTACKS)),
    ("injection", "jailbreak_wrappers/dev.jsonl", _label(_ATTACKS)),
    ("injection", "bipia_email/dev_pairs.jsonl", _label(_ATTACKS)),
    ("injection", "multilingual_injection/dev.jsonl", _label(_ATTACKS)),
    ("injection", "notinject/dev.jsonl", _label(_ATTACKS)),
    ("injection", "self_instruct_benign/dev.jsonl", _label(_ATTACKS)),
    ("hidden", "hidden_text/dev.jsonl", _label(frozenset({"hidden"}))),
    ("code", "code_pairs/dev.jsonl", _code),
    ("content", "xstest/dev.jsonl", _label(frozenset({"unsafe"}))),
    ("content", "self_instruct_benign/dev.jsonl", _label(frozenset({"unsafe"}))),
)
"""Guard, file, and how its rows are labelled."""
