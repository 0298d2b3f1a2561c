"""How a run came about, as a record that travels with its model: what it was told, read and used, and where it ran.

In: a run's folder with its log and energy, its recipe and store. Out: `training.json` there. The record begins with the
runs that made the weights this one started from, as far as they are on record, so that the last one tells all.
Not here: what the numbers mean to a reader (`card`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna import __version__, host
from puna.records import ENERGY, RECORDS, TRAINING, Source, Training, read_energy, read_training, write_training
from puna.train.recipe import RunRecipe
from puna.train.store import Store
from puna.weights import hub

LOG = "log.jsonl"
PHASE = "pretrain"  # of a run whose energy nobody recorded


def account(run: Path, recipe: RunRecipe, sources: Mapping[str, Source]) -> None:
    """Writes the record of a run as far as its log goes."""
    known = [each for each in read_training(run / TRAINING) if each.name == run.resolve().name]
    here = host.describe()
    hosts = [machine for each in known for machine in each.hosts if machine != here]
    energy, lines = read_energy(run / ENERGY), _lines(run / LOG)
    training = Training(
        phase=energy[-1].phase if energy else PHASE,
        name=run.resolve().name,
        recipe=json.loads(json.dumps(recipe.to_dict())),
        steps=len(lines),
        planned=recipe.schedule.steps,
        **{name: sum(int(line[name]) for line in lines) for name in ("tokens", "learnt", "tiles")},
        seconds=round(sum(line["seconds"] for line in lines), 1),
        sources=sources,
        energy=energy,
        hosts=(*hosts, here),
        began=energy[0].date if energy else "",
        ended=energy[-1].date if energy else "",
        version=__version__,
    )
    write_training(run / TRAINING, [*_before(recipe.start), training])


def sources_of(store: Store, passes: Mapping[str, float]) -> dict[str, Source]:
    """Returns what a store holds by source; `passes` as a recipe names them."""
    lengths = np.diff(store.offsets)
    found = {}
    for number, name in enumerate(store.source_names):
        own = lengths[np.asarray(store.sources) == number]
        found[name] = Source(documents=len(own), tokens=int(own.sum()), passes=passes.get(name, 1.0))
    return found


def _before(start: str) -> tuple[Training, ...]:
    """Returns the runs behind the weights that a run starts from: on record beside them, or in the run they are of."""
    if not start:
        return ()
    folder = hub.resolve(start) if start in hub.PACKAGED else Path(start)
    places = (folder, folder / RECORDS, folder.parent)
    return next((found for place in places if (found := read_training(place / TRAINING))), ())


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
