"""Runs, as several tests start, kill and read them."""

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from puna.train.loop import LOG, model_config, train
from puna.train.recipe import from_dict
from puna.train.state import STATE, TrainingState, begin, checkpoints, resume
from tests.reference.mortal import Mortals
from tests.reference.tiny import write_tiny_checkpoint

Tables = dict[str, Any]


def silent(line: str) -> None:
    """Progress that nobody reads."""


def pause_at(step: int) -> Callable[[str], None]:
    """Progress that asks for a pause when it hears of a step."""

    def ask(line: str) -> None:
        if line.startswith(f"step {step}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def finished(tables: Tables, run: str) -> bool:
    """Trains here, on a rank or alone, and says whether it came to the end."""
    return train(from_dict(tables), run, silent).finished


def divided(tables: Tables, **parallel: int) -> Tables:
    """The same on ranks."""
    return tables | {"parallel": parallel}


def of_texts(tables: Tables, texts: Mapping[str, str], folder: Path) -> Tables:
    """The tables of a recipe that trains a model without eyes on these texts, by name, in steps of milliseconds."""
    model, documents = write_tiny_checkpoint(folder / "tiny", vision=False), folder / "train.jsonl"
    made = [{"id": name, "content": [{"type": "text", "text": text}]} for name, text in texts.items()]
    documents.write_text("".join(json.dumps(document) + "\n" for document in made), encoding="utf-8")
    data = {"documents": str(documents), "held_out": "", "tokenizer": str(model / "tokenizer.json")}
    return tables | {
        "model": {"preset": str(model / "config.json"), "seed": 1},
        "data": tables["data"] | data,
        "batch": {"rows": 1, "row_len": 64, "tiles": 0, "window": 8},
    }


def restored(run: Path) -> TrainingState:
    """The state of a run's checkpoint."""
    ((_, home),) = checkpoints(run)
    facts = json.loads((home / STATE).read_text(encoding="utf-8"))
    recipe = from_dict(facts["recipe"])
    state = begin(recipe, model_config(recipe))
    assert resume(state, recipe, facts["data_digest"], run)
    return state


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """The same state of weights, optimiser and data, to the last bit."""
    a, b = restored(one), restored(other)
    assert (a.step, a.data, a.tokens) == (b.step, b.data, b.tokens)
    left, right = a.optimizer.tensors(), b.optimizer.tensors()
    assert len(left) > 50 and left.keys() == right.keys()
    assert all(tensor.equal(right[name]) for name, tensor in left.items())


def lines(run: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in lines_so_far(run)]


def lines_so_far(run: Path) -> list[str]:
    """The log of a run that may not have begun or may be writing."""
    return (run / LOG).read_text(encoding="utf-8").splitlines() if (run / LOG).exists() else []


def logged(run: Path, key: str) -> list[float]:
    """One number of each step."""
    return [line[key] for line in lines(run)]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each step."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(run)]


class Command:
    """`puna train` or `puna tune` with a recipe, on its ranks; each start has a folder for what the ranks say."""

    def __init__(self, tables: Tables, folder: Path, verb: str = "train") -> None:
        self.world = math.prod(n for name, n in tables.get("parallel", {}).items() if name != "expert")
        self.folder, self.run, self.starts = folder, folder / "run", 0
        folder.mkdir()
        self.arguments = [verb, str(_written(tables, folder / "recipe.toml")), "--folder", str(self.run)]

    def start(self, largest: Mapping[int, int] = MappingProxyType({})) -> Mortals:
        """Starts all ranks. `largest` as in `Mortals`."""
        self.starts += 1
        return Mortals(self.world, self.folder / f"start-{self.starts}", self.arguments, largest)

    def said(self, rank: int) -> str:
        """What a rank of the last start has said."""
        file = self.folder / f"start-{self.starts}" / f"rank-{rank}.txt"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @property
    def n_logged(self) -> int:
        """How many steps the log has."""
        return len(lines_so_far(self.run))

    def has_come_to(self, step: int, writes: bool) -> bool:
        """Whether this start trains, so many steps are logged and, if that is wished, a checkpoint is being written."""
        is_on = "resumed at" in self.said(0) or "step 1/" in self.said(0)
        return is_on and self.n_logged >= step and (self.is_writing or not writes)

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is half on disk."""
        return any(self.run.glob("checkpoint-*.partial"))


def _written(tables: Tables, file: Path) -> Path:
    parts = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) for name, table in tables.items()
    ]
    file.write_text("\n".join(parts), encoding="utf-8")
    return file
