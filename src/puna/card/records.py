"""All that is on record about one model: found in folders by the names of files, read, and nothing else looked at.

In: folders, the first of which has a file winning. Out: `Records`. Which file is what:

    card.toml               what people declare (`declared`)
    training.json           how the weights came to be (`puna.records`)
    results.json            benchmarks, as `puna eval --out` leaves them
    evaluation.json         what training held out: label -> what `puna eval --task held_out --json` prints
    quantization*.json      what `puna quantize --report --json` prints
    stage-RUN.json          benchmarks of the weights as they were after the run of this name, as results.json
    safety.json, redteam.json, critical.json   as `puna eval --suite` leaves them
    *.safetensors           the weights; only their size is asked for

A file that is not there is on no list, and its section says so; a file that cannot be read is an error.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.card.declared import FILE as DECLARED_FILE
from puna.card.declared import Declared, read
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.records import RESULTS, TRAINING, Evaluation, Training, read_evaluations, read_training

HELD_OUT = "evaluation.json"
QUANTIZATIONS = "quantization*.json"
STAGES = "stage-*.json"
SAFETY, REDTEAM, CRITICAL = "safety.json", "redteam.json", "critical.json"
NEEDED = {
    SAFETY: ("policy", "sets", "tone", "missing"),
    REDTEAM: ("policy", "passed", "succeeded", "disguises"),
    QUANTIZATIONS: ("to", "parts", "bytes"),
}
"""What a document must have, by the name of its file."""
KNOWN = (DECLARED_FILE, TRAINING, RESULTS, HELD_OUT, QUANTIZATIONS, STAGES, SAFETY, REDTEAM, CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What is known of a model. name: of its folder, or of a preset; weights_bytes: of its files, None without any.

    float_bytes  of a number as it is stored, 2 unless the configuration says otherwise
    stages       name of a run -> what was measured of the weights as it left them
    sources      name of each file that was read -> the first sixteen digits of its SHA-256
    """

    name: str
    config: LlamaConfig
    float_bytes: int = 2
    weights_bytes: int | None = None
    declared: Declared = field(default_factory=Declared)
    training: tuple[Training, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    stages: Mapping[str, tuple[Evaluation, ...]] = field(default_factory=dict)
    held_out: Mapping[str, Mapping[str, Any]]
    quantizations: tuple[Mapping[str, Any], ...] = ()
    safety: Mapping[str, Any] | None = None
    redteam: Mapping[str, Any] | None = None
    critical: Mapping[str, Any] | None = None
    sources: Mapping[str, str]


def gather(name: str, config: LlamaConfig, folders: Sequence[Path], float_bytes: int = 2) -> Records:
    """Returns what the folders hold. Raises ConfigError for a file that is not what its name says."""
    files = {file.name: file for folder in reversed(folders) for pattern in KNOWN for file in folder.glob(pattern)}
    documents = {name: _document(files[name]) for name in (SAFETY, REDTEAM, CRITICAL) if name in files}
    declared = files.get(DECLARED_FILE)
    held_out = _held_out(_document(files[HELD_OUT]), files[HELD_OUT], name) if HELD_OUT in files else {}
    sizes = [_weights_bytes(folder) for folder in folders]
    training = read_training(files[TRAINING]) if TRAINING in files else ()
    return Records(
        name=name,
        config=config,
        float_bytes=float_bytes,
        weights_bytes=next((size for size in sizes if size), None),
        declared=Declared() if declared is None else read(declared.read_text("utf-8"), str(declared)),
        training=training,
        evaluations=read_evaluations(files[RESULTS]) if RESULTS in files else (),
        stages=_stages([file for each, file in sorted(files.items()) if Path(each).match(STAGES)], training),
        held_out=held_out,
        quantizations=tuple(_document(file) for each, file in sorted(files.items()) if Path(each).match(QUANTIZATIONS)),
        safety=documents.get(SAFETY),
        redteam=documents.get(REDTEAM),
        critical=documents.get(CRITICAL),
        sources={each: _digest(files[each]) for each in sorted(files)},
    )


def _stages(files: Iterable[Path], runs: Sequence[Training]) -> dict[str, tuple[Evaluation, ...]]:
    """Returns what was measured after each run, by its name. Raises ConfigError for a file of no run on record."""
    found = {file.stem.removeprefix("stage-"): file for file in files}
    for name, file in found.items():
        if name not in {run.name for run in runs}:
            raise ConfigError(f"{file}: {TRAINING} has no run {name!r}; name it after one of its runs, or remove it")
    return {name: read_evaluations(file) for name, file in found.items()}


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _document(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON ({error}); write it again or remove it") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: is no JSON object; write it again or remove it")
    for pattern, keys in NEEDED.items():
        if file.match(pattern) and (lacking := [key for key in keys if key not in document]):
            raise ConfigError(f"{file}: has no {lacking[0]!r}, so it is no such record; write it again or remove it")
    return document


def _held_out(document: Mapping[str, Any], file: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """Returns results by label, the model's own first; a document that is one result has the model's name."""
    labelled = {name: document} if "exactness" in document else document
    found = {label: each for label, each in labelled.items() if isinstance(each, dict) and "exactness" in each}
    if not found:
        raise ConfigError(
            f"{file}: has no results of held-out documents; make it with puna eval --task held_out --json"
        )
    return dict(sorted(found.items(), key=lambda item: item[0] != name))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def total(numbers: Iterable[float | None]) -> float | None:
    """Returns a sum, None where one of them is not known or there is none."""
    known = list(numbers)
    return sum(each for each in known if each is not None) if known and None not in known else None
