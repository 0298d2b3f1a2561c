"""What runs write for others to read, as values: the results of evaluations, training, and the energy that work took.

Files are the interface between those who measure and the card, which imports none of them. A record holds all that is
needed to judge a number: where it comes from, how sure it is, and what it must not be compared with.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.errors import ConfigError
from puna.host import Host


def write_whole(path: Path, text: str, *, lasting: bool = False) -> None:
    """Writes a file whole or not at all, wherever the process is killed; `lasting`: or the machine goes down, too."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)


RESULTS = "results.json"
"""The file of a run that holds its evaluations, in the order in which they ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of one task on one model.

    task            its name in puna
    benchmark, table, shots   as in the card; table is "base", "chat", or "" for what the card does not have
    metric, unit    "share" is from 0 to 1, anything else a plain number; best: "high" or "low"
    score, stderr   None where nothing could be scored; low, high: the 95 % interval, clustered as the items are
    n, unscored     items with a value, and without; n_published: of the whole set, None where nobody counts them
    chance          what guessing reaches; at_chance: the interval does not exclude it
    differences     why the value must not be compared with the card's, empty where it may
    notes           what is inferred or approximate in the setting
    published       model -> value in the card, as printed there
    model, model_hash, settings, data, date (ISO 8601), version   what was run, how, on what, when, by which puna
    """

    task: str
    benchmark: str
    table: str
    shots: int
    metric: str
    unit: str
    best: str
    score: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    n_published: int | None
    chance: float
    at_chance: bool
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    published: Mapping[str, str]
    model: str
    model_hash: str
    settings: Mapping[str, Any]
    data: str
    date: str
    version: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)


def write_evaluations(evaluations: Sequence[Evaluation]) -> str:
    """Returns the text of a results file."""
    documents = [evaluation.to_json() for evaluation in evaluations]
    return json.dumps({"evaluations": documents}, indent=1, ensure_ascii=False) + "\n"


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """Returns the evaluations of a results file. Raises ConfigError where it is none."""
    try:
        documents = json.loads(path.read_text("utf-8"))["evaluations"]
        listed = ("differences", "notes")
        return tuple(Evaluation(**each | {name: tuple(each[name]) for name in listed}) for each in documents)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: does not exist; name the folder of a run of puna eval") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: is no file of results ({error!r}); run puna eval again") from error


ENERGY = "energy.jsonl"
"""The file of a run that holds what each of its starts took, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What one start of a run took, discarded work included.

    phase           such as "pretrain"; date (ISO 8601) and seconds: when, and how long
    joules          of the machines, by method of `meter`; None: no meter and nothing declared
    processors, tdp_watts, utilisation, pue, location_kg_per_kwh, market_kg_per_kwh, source   as declared (`meter.Site`)
    kwh, location_kg, market_kg   joules with pue, and that times either factor; None where something is not known
    first_step, last_step, tokens   what was done
    """

    phase: str
    date: str
    seconds: float
    joules: Mapping[str, float] | None
    processors: int
    tdp_watts: float
    utilisation: float
    pue: float
    location_kg_per_kwh: float | None
    market_kg_per_kwh: float | None
    source: str
    kwh: float | None
    location_kg: float | None
    market_kg: float | None
    first_step: int
    last_step: int
    tokens: int
    version: str


def read_energy(path: Path) -> tuple[Energy, ...]:
    """Returns what each start of a run took; nothing where no such file is. Raises ConfigError for another one."""
    if not path.is_file():
        return ()
    try:
        return tuple(Energy(**json.loads(line)) for line in path.read_text("utf-8").splitlines())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is no record of energy ({error!r}); restore it or remove it") from error


def write_energy(path: Path, records: Sequence[Energy]) -> None:
    """Writes the file of a run, whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


RECORDS = "records"
"""The folder beside a model's files that may hold its records: no part of the model itself."""

TRAINING = "training.json"
"""The file of a run, or beside a model, that holds how its weights came to be: all runs, the first one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Documents of one origin in an epoch's store, their tokens, and how often an epoch shows them."""

    documents: int
    tokens: int
    passes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One run, as far as it came.

    phase           such as "pretrain"; name: of the run
    recipe          all that it was told, tables of the recipe as JSON values
    steps, planned  done, and in the recipe
    tokens, learnt, tiles   read, those of them with a loss, and tiles of pictures
    seconds         spent in steps
    sources         what it read, by name; empty where nobody knows
    energy          of each start, discarded work included; empty where nothing was recorded
    hosts           the machines of its first rank, one after the other; empty where nobody knows
    began, ended    ISO 8601, "" where nobody knows
    version         of puna
    """

    phase: str
    name: str
    recipe: Mapping[str, Any]
    steps: int
    planned: int
    tokens: int
    learnt: int
    tiles: int
    seconds: float
    sources: Mapping[str, Source]
    energy: tuple[Energy, ...]
    hosts: tuple[Host, ...]
    began: str
    ended: str
    version: str

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Training":
        """Returns the run that a file tells of. Raises TypeError or KeyError for anything else."""
        return cls(
            **{
                **document,
                "sources": {name: Source(**each) for name, each in document["sources"].items()},
                "energy": tuple(Energy(**each) for each in document["energy"]),
                "hosts": tuple(Host.from_json(each) for each in document["hosts"]),
            }
        )


def read_training(path: Path) -> tuple[Training, ...]:
    """Returns the runs that a file tells of; nothing where no such file is. Raises ConfigError for another one."""
    if not path.is_file():
        return ()
    try:
        return tuple(Training.from_json(each) for each in json.loads(path.read_text("utf-8"))["runs"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: is no record of training ({error!r}); restore it or remove it") from error


def write_training(path: Path, runs: Sequence[Training]) -> None:
    """Writes the file, whole or not at all."""
    document = {"runs": [asdict(run) for run in runs]}
    write_whole(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
