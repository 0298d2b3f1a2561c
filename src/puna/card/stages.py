"""What each stage of a tuned model brought: pre-training, tuning on conversations, reinforcement, preferences.

In: records. Out: the section "Stages", with the same measures before and after each run; of a model that was trained in
one way alone there is none. Stages are the runs on record, and a run of which nobody measured the weights says so.
"""

from collections.abc import Sequence

from puna.card.benchmarks import value
from puna.card.document import Block, Missing, Section, Table, Text
from puna.card.records import Records
from puna.card.words import UNKNOWN, listed
from puna.records import Evaluation, Training

PHASES = {
    "pretrain": "pre-training",
    "supervised": "supervised tuning",
    "reinforce": "reinforcement learning",
    "preference": "preferences, DPO",
    "distill": "distillation",
}
TUNED = PHASES.keys() - {"pretrain"}
REMEDY = "run puna eval MODEL --task TASKS --out DIR on the weights as {} left them, and keep results.json as {}"


def stages(records: Records) -> Section | None:
    """Returns the section, None where no run tuned the model."""
    runs = records.training
    if not any(run.phase in TUNED for run in runs):
        return None
    blocks: list[Block] = [Text(f"The weights came to be in stages: {listed([_named(run) for run in runs])}.")]
    if runs[0].phase in TUNED:
        remedy = "put the base's training.json beside its weights, and tune again"
        blocks.append(Missing(f"how the weights came to be that {runs[0].name} tuned", remedy))
    if records.stages:
        blocks.append(_table(records))
    for run in runs:
        if run.name not in records.stages:
            file = f"stage-{run.name}.json"
            blocks.append(Missing(f"measures of the model after {run.name}", REMEDY.format(run.name, file)))
    return Section(title="Stages", blocks=tuple(blocks))


def _named(run: Training) -> str:
    return f"{run.name} ({PHASES.get(run.phase, run.phase)})"


def _table(records: Records) -> Table:
    """Returns scores: a row for each task that was asked after any stage, a column for each stage."""
    found = [{each.task: each for each in records.stages.get(run.name, ())} for run in records.training]
    tasks = {task: each for stage in found for task, each in stage.items()}
    rows = []
    for task, each in tasks.items():
        asked = [stage.get(task) for stage in found]
        counts = sorted({one.n + one.unscored for one in asked if one is not None})
        n = " to ".join(f"{count:,}" for count in (counts if len(counts) == 1 else (counts[0], counts[-1])))
        rows.append((each.benchmark, each.metric, "more" if each.best == "high" else "less", n, *map(_cell, asked)))
    head = ("Measure", "Metric", "Better is", "Items", *map(_named, records.training))
    return Table(head, tuple(rows), 3, "The same measures after each stage, with intervals at 95 %", _notes(records))


def _cell(each: Evaluation | None) -> str:
    if each is None or each.score is None:
        return UNKNOWN
    interval = "" if each.low is None else f" ({value(each, each.low)} to {value(each, each.high)})"
    return value(each, each.score) + interval


def _notes(records: Records) -> tuple[str, ...]:
    """Returns what must be known to compare, each once: notes of the measures, and that items differ where they do."""
    every: Sequence[Evaluation] = [each for stage in records.stages.values() for each in stage]
    return tuple(dict.fromkeys(note for each in every for note in each.notes))
