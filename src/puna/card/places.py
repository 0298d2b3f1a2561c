"""From what somebody names to the folders in which its records lie: a run, a model, or a preset, which has few.

In: a name as `puna card` takes it. Out: a `Place`. A run has its log; its model, when it is finished, lies in `model/`
below it. Records of a model lie beside its weights, in `records/` there, or in the run that made it.
Not here: hub ids, which the caller resolves, and what the files say (`records`).
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from puna.errors import ConfigError
from puna.presets import PRESETS
from puna.records import RECORDS, TRAINING, read_training

RUN_FILES = ("log.jsonl", TRAINING)
MODEL = "model"
_BYTES = {"float32": 4}


class Place(NamedTuple):
    """Where a model is. config: what names its configuration, a folder or a preset; folders: the nearest first."""

    name: str
    config: str
    folders: tuple[Path, ...]
    float_bytes: int = 2


def find(name: str, more: Sequence[Path] = ()) -> Place:
    """Returns where the records of a model lie. `more` are folders to look in first.

    A name that is no folder is a preset, a hub id or "cria", the model that ships. Raises ConfigError for a folder of
    `more` that does not exist, and for a run that has neither a model nor a record yet.
    """
    for folder in more:
        if not folder.is_dir():
            raise ConfigError(f"--records {folder}: is no folder; name the one that holds the records")
    assets = Path(str(files("puna"))) / "assets"
    folder = assets / "cria" if name == "cria" else Path(name)
    if not folder.is_dir() and name in PRESETS:
        return Place(name, name, (*more, assets / "llama4" / name))
    if not (folder / "config.json").is_file() and any((folder / each).is_file() for each in RUN_FILES):
        return _run(folder, more)
    run = folder.parent if any((folder.parent / each).is_file() for each in RUN_FILES) else None
    nearby = (folder, folder / RECORDS, *([run] if run is not None else []))
    title = run.resolve().name if run is not None and folder.name == MODEL else folder.resolve().name
    return Place(title, name, (*more, *nearby), float_bytes(folder))


def _run(run: Path, more: Sequence[Path]) -> Place:
    folders = (*more, run, run / MODEL, run / RECORDS)
    if (run / MODEL / "config.json").is_file():
        return Place(run.resolve().name, str(run / MODEL), folders, float_bytes(run / MODEL))
    known = read_training(run / TRAINING)
    if not known:
        raise ConfigError(f"{run}: has neither a model nor {TRAINING} yet; let the run pause or end first")
    model = known[-1].recipe["model"]  # a run that tunes has a base, which an adapter leaves as it is
    return Place(run.resolve().name, str(model.get("preset") or model["base"]), folders)


def float_bytes(folder: Path) -> int:
    """Returns the bytes of a number of a checkpoint, as its configuration says; 2 where it does not say."""
    file = folder / "config.json"
    if not file.is_file():
        return 2
    document = json.loads(file.read_text("utf-8"))
    names = [part.get(key) for part in (document, document.get("text_config", {})) for key in ("dtype", "torch_dtype")]
    return next((_BYTES.get(name, 2) for name in names if name), 2)
