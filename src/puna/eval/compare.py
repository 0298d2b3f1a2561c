"""Two runs of the same items, compared pair by pair: which is better, by how much, and whether luck would do.

In: the folders of two runs. Out: for each task that both have a `Comparison`, over the items that both scored. Pairs
see differences that two separate intervals hide, since most of what varies is how hard the items are.

The test is stated with each result:

- "McNemar, exact" where items are right or wrong, independent, and averaged plainly: of the items on which the runs
  differ, each may as well have gone the other way
- "sign flips" everywhere else: the differences of items that share a source keep their signs together, and are flipped
  or not at random, 9,999 times, with a fixed seed

Source: McNemar 1947; Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP"; the error
and interval of the difference as in Miller 2024 (arXiv 2411.00640), section 4.2.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.errors import ConfigError
from puna.eval.metrics import Z_95, average
from puna.eval.record import Line, read_records
from puna.eval.tasks import TASKS

FLIPS = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How run B differs from run A on a task: `difference` is B minus A, in the task's unit, over `n` common items.

    `n_other` items are scored in one of the runs only, `n_changed` of the common ones were asked otherwise. `p` is the
    probability of a difference at least as large without any reason. `stderr` is None where the data cannot tell.
    """

    task: str
    unit: str
    n: int
    n_other: int
    n_changed: int
    a: float
    b: float
    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    n_better: int
    n_worse: int
    p: float
    test: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)


def compare(run_a: Path, run_b: Path) -> list[Comparison]:
    """Returns a comparison for each task that both runs have. Raises ConfigError when there is none."""
    for folder in (run_a, run_b):
        if not (folder / "run.json").is_file():
            raise ConfigError(
                f"--compare {folder}: is no run's folder; give what --out named, or the run wrote below runs/"
            )
    names = [path.stem for path in sorted(run_a.glob("*.jsonl")) if (run_b / path.name).is_file()]
    found = [
        _compare(name, read_records(run_a / f"{name}.jsonl"), read_records(run_b / f"{name}.jsonl")) for name in names
    ]
    made = [each for each in found if each is not None]
    if not made:
        raise ConfigError(f"--compare: {run_a} and {run_b} have no scored item in common; run the same tasks on both")
    return made


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns comparisons as Markdown."""
    head = "| Task | n | A | B | B - A | 95 % | better/worse | p | Test | Remarks |\n"
    head += "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | :--- | :--- |\n"
    return head + "\n".join(_row(each) for each in comparisons)


def _row(each: Comparison) -> str:
    factor, digits = (100.0, 1) if each.unit == "share" else (1.0, 4)
    span = (
        ""
        if each.low is None or each.high is None
        else f"{each.low * factor:+.{digits}f}..{each.high * factor:+.{digits}f}"
    )
    remarks = [each.note] if each.note else []
    remarks += [f"{each.n_other} items in one run only"] if each.n_other else []
    remarks += [f"{each.n_changed} items asked otherwise"] if each.n_changed else []
    return (
        f"| {each.task} | {each.n} | {each.a * factor:.{digits}f} | {each.b * factor:.{digits}f} "
        f"| {each.difference * factor:+.{digits}f} | {span} | {each.n_better}/{each.n_worse} | {each.p:.3g} "
        f"| {each.test} | {'; '.join(remarks)} |"
    )


def _compare(name: str, a: dict[str, Line], b: dict[str, Line]) -> Comparison | None:
    scored_a, scored_b = ({id_: line for id_, line in run.items() if line.value is not None} for run in (a, b))
    common = sorted(scored_a.keys() & scored_b.keys())
    if not common:
        return None
    task = TASKS.get(name)
    macro, unit = (task.macro, task.unit) if task else (False, "share")
    lines = [scored_a[id_] for id_ in common]
    pairs = [(_value(scored_a[id_]), _value(scored_b[id_])) for id_ in common]
    groups = [line.group for line in lines] if macro else None
    clusters = [line.cluster or line.id for line in lines]
    differences = [after - before for before, after in pairs]
    whole = average(differences, groups, clusters)
    n_better, n_worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if (
        groups is None
        and len(set(clusters)) == len(clusters)
        and all(value in (0, 1) for pair in pairs for value in pair)
    ):
        test, p = "McNemar, exact", mcnemar(n_better, n_worse)
    else:
        test, p = "sign flips", sign_flips(differences, groups, clusters)
    error = None if whole.stderr is None else Z_95 * whole.stderr
    return Comparison(
        task=name,
        unit=unit,
        n=len(common),
        n_other=len(scored_a.keys() ^ scored_b.keys()),
        n_changed=sum(scored_a[id_].asked != scored_b[id_].asked for id_ in common),
        a=average([before for before, _ in pairs], groups).value,
        b=average([after for _, after in pairs], groups).value,
        difference=whole.value,
        stderr=whole.stderr,
        low=None if error is None else whole.value - error,
        high=None if error is None else whole.value + error,
        n_better=n_better,
        n_worse=n_worse,
        p=p,
        test=test,
        note="mean of items, not the measure of the corpus" if task and task.summary else "",
    )


def mcnemar(n_better: int, n_worse: int) -> float:
    """Returns the two-sided probability of so uneven a split of n_better + n_worse fair coins, 1 at most."""
    n, least = n_better + n_worse, min(n_better, n_worse)
    n_as_uneven: int = 2 * sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, n_as_uneven / (1 << n))


def sign_flips(differences: Sequence[float], groups: Sequence[str] | None, clusters: Sequence[str]) -> float:
    """Returns how often random signs, one for each cluster, bring the mean as far from 0; with `groups`, theirs."""
    sizes: dict[str, int] = defaultdict(int)
    keys = groups or [""] * len(differences)
    for key in keys:
        sizes[key] += 1
    sums: dict[str, float] = defaultdict(float)
    for difference, key, cluster in zip(differences, keys, clusters, strict=True):
        sums[cluster] += difference / sizes[key]
    parts = [part for part in sums.values() if part]
    seen = abs(sum(parts)) - 1e-12  # sums in another order differ in the last places
    chance = random.Random(0)
    n_far = sum(
        abs(sum(part if bit == "1" else -part for part, bit in zip(parts, _bits(chance, len(parts)), strict=True)))
        >= seen
        for _ in range(FLIPS)
    )
    return (1 + n_far) / (1 + FLIPS)


def _bits(chance: random.Random, n: int) -> str:
    return format(chance.getrandbits(n), f"0{n}b") if n else ""


def _value(line: Line) -> float:
    assert line.value is not None, "unscored items were left out"
    return line.value
