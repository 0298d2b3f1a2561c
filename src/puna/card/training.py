"""How the weights came to be: runs, machines, energy and emissions by method, and the data.

In: records. Out: sections "Hardware and software" and "Training data". Energy is that of operation alone: what making
the machines took is not in it, nor what running the model takes. Location-based emissions count the grid where it ran,
market-based ones what was bought; either is empty where no factor was declared.

Source of the arithmetic: `meter`; Patterson et al., arXiv 2204.05149.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.card.document import Block, Missing, Section, Table, Text, declared
from puna.card.records import Records, total
from puna.card.words import UNKNOWN, plain, short, size, whole
from puna.host import Host
from puna.records import Energy, Training

METHODS = {
    "nvml-counter": "metered by the GPUs' energy counters",
    "nvml-power": "metered: the GPUs' power, summed over time",
    "rapl": "metered by the processors' energy counters",
    "declared": "not metered: hours times declared watts",
}
"""How energy is known, from best to worst, as `meter` names it."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "model": ("preset", "base", "start", "seed", "quantize"),
    "objective": ("kind",),
    "lora": ("rank", "alpha", "targets"),
    "batch": ("rows", "row_len", "tiles", "accumulate"),
    "optimizer": ("matrices", "lr", "weight_decay", "momentum", "beta1", "beta2", "clip_norm"),
    "schedule": ("warmup_steps", "decay_steps", "final_fraction"),
    "loss": ("balance", "bias_rate"),
    "compute": ("dtype",),
}
"""Of a recipe, what the card shows, table by table: nothing that names a folder of one machine but the model's."""

NO_TRAINING = Missing("how the weights came to be", "train with puna, or put its training.json beside the model")


def hardware(records: Records) -> Section:
    """Returns the section about machines, software and energy."""
    said, runs = records.declared, records.training
    hosts = list(dict.fromkeys(_host(host) for run in runs for host in run.hosts))
    software = sorted(
        {f"{name} {version}" for run in runs for host in run.hosts for name, version in host.packages.items()}
    )
    versions = sorted({f"puna {run.version}" for run in runs if run.version})
    blocks: list[Block] = []
    for name, found, text in (("hardware", hosts, said.hardware), ("software", versions + software, said.software)):
        told = "; ".join(filter(None, ["; ".join(found), declared(text)]))
        missing = Missing(f"the {name} of training", f"declare `{name}` in card.toml")
        blocks.append(Text(f"**{name.capitalize()}:** {told}") if told else missing)
    if not runs:
        return Section(title="Hardware and software", blocks=(*blocks, NO_TRAINING))
    blocks += [_runs(runs), _settings(runs), *_energy(runs)]
    return Section(title="Hardware and software", blocks=tuple(blocks))


def data(records: Records) -> Section:
    """Returns the section about what the model read."""
    said, blocks = records.declared, list[Block]()
    blocks.append(
        Text(declared(said.data_overview))
        if said.data_overview
        else Missing("what the training data are", "declare `data_overview` in card.toml")
    )
    blocks += [_sources(run) for run in records.training if run.sources]
    if records.training and not any(run.sources for run in records.training):
        blocks.append(Missing("documents by source", "train with this version of puna"))
    if said.attribution:
        blocks.append(Text(declared(said.attribution)))
    return Section(title="Training data", blocks=tuple(blocks))


def emissions_kg(runs: Sequence[Training]) -> float | None:
    """Returns the location-based emissions of all runs, None where those of one start are not known."""
    return (
        total(energy.location_kg for run in runs for energy in run.energy) if all(run.energy for run in runs) else None
    )


def _host(host: Host) -> str:
    memory = f", {size(host.memory_bytes)} of memory" if host.memory_bytes else ""
    fast = [name for name in host.instructions if name.startswith(("avx512_bf16", "amx_bf16"))]
    gpus = "".join(f", {gpu.name} of {size(gpu.memory_bytes)}" for gpu in host.gpus)
    return f"{host.cores} cores of {host.processor}{' with ' + ', '.join(fast) if fast else ''}{memory}{gpus}"


def _runs(runs: Sequence[Training]) -> Table:
    head = ("Run", "Phase", "Steps", "Tokens", "with a loss", "Tiles", "Hours in steps")
    rows: list[tuple[str, ...]] = [
        (
            each.name,
            each.phase,
            _steps(each),
            whole(each.tokens),
            whole(each.learnt),
            whole(each.tiles),
            _hours(each.seconds),
        )
        for each in runs
    ]
    if len(runs) > 1:
        sums = (sum(getattr(run, name) for run in runs) for name in ("steps", "tokens", "learnt", "tiles"))
        rows.append(("**Total**", "", *(whole(n) for n in sums), _hours(sum(run.seconds for run in runs))))
    return Table(head, tuple(rows), 2, "Training, run by run")


def _settings(runs: Sequence[Training]) -> Table:
    """Returns what runs were told that bears on the result, a row for each value that one of them has."""
    told = [dict(_told(run.recipe)) for run in runs]
    names = [f"{table}.{key}" for table, keys in SETTINGS.items() for key in keys]
    rows = [(name, *(each.get(name, UNKNOWN) for each in told)) for name in names if any(name in each for each in told)]
    return Table(("", *(run.name for run in runs)), tuple(rows), 1, "What each run was told")


def _told(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for table, keys in SETTINGS.items():
        values = recipe.get(table) or {}
        for key in keys:
            if values.get(key) not in (None, "", [], 0, 0.0):
                yield f"{table}.{key}", _value(values[key])


def _value(value: Any) -> str:
    """Returns a setting; of a folder by its whole path only the end, since the rest is some machine's."""
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, str):
        return "/".join(Path(value).parts[-2:]) if value.startswith("/") else value
    return f"{value:,}" if type(value) is int else str(value)


def _steps(run: Training) -> str:
    return whole(run.steps) if run.steps == run.planned else f"{run.steps:,} of {run.planned:,}"


def _hours(seconds: float) -> str:
    return plain(seconds / 3600)


def _energy(runs: Sequence[Training]) -> list[Block]:
    known = [(run, each) for run in runs for each in run.energy if each.joules is not None]
    without = [run.name for run in runs if not any(each.joules is not None for each in run.energy)]
    blocks: list[Block] = []
    if known:
        blocks.append(_energy_table(known))
    if without:
        remedy = (
            "train where a meter can be read, or declare tdp_watts, pue and the grid's factor in the recipe's [energy]"
        )
        blocks.append(Missing(f"energy and emissions of {', '.join(dict.fromkeys(without))}", remedy))
    return blocks


def _energy_table(known: Sequence[tuple[Training, Energy]]) -> Table:
    head = (
        "Run", "How it is known", "Processor hours", "Watts each", "PUE", "Energy (kWh)",
        "Location-based (kg CO2eq)", "Market-based (kg CO2eq)",
    )  # fmt: skip
    groups: dict[tuple[str, str], list[Energy]] = {}
    for run, each in known:
        groups.setdefault((run.name, ", ".join(sorted(each.joules or {}))), []).append(each)
    rows = [(name, _method(methods), *_figures(starts)) for (name, methods), starts in groups.items()]
    if len(rows) > 1:
        hours, _, _, *rest = _figures([each for _, each in known])
        rows.append(("**Total**", "", hours, UNKNOWN, UNKNOWN, *rest))
    sources = dict.fromkeys(each.source for _, each in known if each.source)
    notes = [f"Factors: {source}." for source in sources]
    notes.append("Starts that were repeated after a kill are counted. Only operation is counted, and only of training.")
    return Table(head, tuple(rows), 2, "Energy and emissions of training", tuple(notes))


def _method(methods: str) -> str:
    return "; ".join(METHODS.get(method, method) for method in methods.split(", "))


def _figures(starts: Sequence[Energy]) -> tuple[str, ...]:
    hours = sum(each.seconds / 3600 * each.processors for each in starts)
    joules = sum(sum((each.joules or {}).values()) for each in starts)
    watts = joules / 3600 / hours if hours else None
    pues = sorted({each.pue for each in starts})
    return (
        plain(hours),
        plain(watts),
        "; ".join(f"{pue:g}" for pue in pues),
        *(plain(_total(starts, name)) for name in ("kwh", "location_kg", "market_kg")),
    )


def _total(starts: Iterable[Energy], name: str) -> float | None:
    return total(getattr(each, name) for each in starts)


def _sources(run: Training) -> Table:
    rows = [
        (name, whole(each.documents), whole(each.tokens), f"{each.passes:g}")
        for name, each in sorted(run.sources.items(), key=lambda item: -item[1].tokens * item[1].passes)
    ]
    caption = f"What {run.name} read, {short(sum(each.tokens for each in run.sources.values()))} tokens an epoch"
    return Table(("Source", "Documents", "Tokens", "Times an epoch"), tuple(rows), 1, caption)
