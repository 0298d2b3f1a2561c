"""The suites about safety, as `puna eval` runs them: the whole system, a red team, critical risks.

In: a suite's name, a model, a pipeline, folders of data. Out: one document and one table, which are also written to the
run's folder. Not here: what is measured (`safety`, `detection`, `redteam`, `critical`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import ConfigError
from puna.eval import critical, detection, redteam, safety, safety_sets
from puna.eval.ask import Model
from puna.guard.pipeline import Pipeline

SUITES = ("safety", "redteam", "critical")


class Findings(NamedTuple):
    """What a suite found. `worse` names what became worse than the baseline, where one was given."""

    document: dict[str, Any]
    table: str
    worse: tuple[str, ...] = ()


def run(
    suite: str,
    model: Model,
    pipeline: Pipeline,
    data: Sequence[Path],
    *,
    limit: int | None,
    max_new_tokens: int | None,
    baseline: Path | None,
    operator: str | None,
    progress: Callable[[str], None],
) -> Findings:
    """Runs one of `SUITES`. Raises ConfigError for data that is missing or may not be used."""
    if suite == "redteam":
        raids = redteam.raid(pipeline, model)
        return Findings(raids.to_json(), raids.table())
    if suite == "critical":
        document = _critical(model, pipeline, data, operator, limit, max_new_tokens or 512)
        return Findings(document, json.dumps(document, indent=2))
    if len(data) != 1:
        raise ConfigError("--data: the suite safety needs one folder, which holds xstest, cyberseceval_frr and others")
    cases, missing = safety_sets.read_cases(data[0])
    chosen = safety.some(cases, limit)
    record = safety.measure(
        chosen, model, pipeline, missing=missing, max_new_tokens=max_new_tokens or 128, progress=progress
    )
    guards = {name: guard for name in pipeline.policy.guards if (guard := pipeline.guard(name)) is not None}
    alone = detection.figures(guards, data[0])
    document = record.to_json() | {
        "guards": {
            name: {group: each.to_dict() for group, each in by_group.items()} for name, by_group in alone.items()
        }
    }
    before = None if baseline is None else json.loads(baseline.read_text("utf-8"))
    worse = () if before is None else tuple(safety.worse(document, before))
    return Findings(document, f"{record.table()}\n\n{detection.table(alone)}", worse)


def write(findings: Findings, suite: str, folder: Path) -> None:
    """Writes document and table to a folder, as SUITE.json and SUITE.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{suite}.json").write_text(json.dumps(findings.document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / f"{suite}.md").write_text(findings.table + "\n", "utf-8")


def _critical(
    model: Model,
    pipeline: Pipeline,
    data: Sequence[Path],
    operator: str | None,
    limit: int | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Runs an operator's set, or without one the placeholders, which show that the way is open from end to end."""
    if len(data) > 1 or (data and operator is None):
        raise ConfigError("--operator: say who you are, for ACCESS.md of the one folder that --data names")
    cases = critical.read_cases(data[0], operator or "") if data else critical.placeholders()
    document = critical.measure(cases[:limit], model, pipeline, max_new_tokens=max_new_tokens)
    return document | {"is_placeholder": not data}
