"""The state of a training run, and its checkpoint: one file, written whole or not at all.

In and out: a `TrainingState`. The weights are held once, as the optimiser's float32 masters. A checkpoint carries the
digest of its recipe and of its data; another recipe cannot continue it, for then the weights would be of neither. It
also says how its process added numbers, so that a run that goes on elsewhere can say that its bits will be others.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama, initialise
from puna.train.optim import Optimizer, cast
from puna.train.pack import DataState
from puna.train.recipe import Recipe
from puna.weights.checkpoint import load

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint within the folder of a run."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Everything that the next step depends on. `step` counts finished steps. Changed in place by the loop."""

    step: int
    model: Llama
    optimizer: Optimizer
    data: DataState
    seconds: float
    """Time spent in steps so far, over all starts of the run."""
    tokens: int
    """Tokens seen so far, without padding."""
    arithmetic: str = ""
    """How the last process added numbers, as `instructions.arithmetic` says it."""


def begin(recipe: Recipe, config: LlamaConfig) -> TrainingState:
    """Returns the state before the first step, a pure function of the recipe and of the checkpoint that it starts from.

    Raises ConfigError or WeightsError when that checkpoint is missing, damaged or of another model.
    """
    if recipe.model.start:
        model = load(Path(recipe.model.start), dtype=torch.float32)
        if model.config != config:
            raise ConfigError(f"model.start: {recipe.model.start} is not a {recipe.model.preset}; name its own preset")
    else:
        model = Llama(config)
        initialise(model, torch.Generator().manual_seed(recipe.model.seed))
    optimizer = Optimizer(model.named_parameters(), recipe.optimizer)
    cast(model, getattr(torch, recipe.compute.dtype))
    return TrainingState(step=0, model=model, optimizer=optimizer, data=DataState(), seconds=0.0, tokens=0)


def save(state: TrainingState, recipe: Recipe, data_digest: str, run: str | Path) -> None:
    """Writes the checkpoint of folder `run`. The one before stays until the new one is on disk."""
    path = Path(run) / CHECKPOINT
    partial = path.with_name(CHECKPOINT + ".partial")
    content = {
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "data_digest": data_digest,
        "step": state.step,
        "data": tuple(state.data),
        "seconds": state.seconds,
        "tokens": state.tokens,
        "arithmetic": state.arithmetic,
        "optimizer": state.optimizer.state_dict(),
    }
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def resume(state: TrainingState, recipe: Recipe, data_digest: str, run: str | Path) -> bool:
    """Continues `state` from the checkpoint of folder `run`; returns False when there is none.

    Raises WeightsError when the checkpoint is damaged or was made with another recipe or other data.
    """
    path = Path(run) / CHECKPOINT
    if not path.is_file():
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise WeightsError(f"checkpoint {path}: cannot be read ({error}); remove it to begin anew") from error
    if content["recipe_digest"] != recipe.digest:
        names = ", ".join(_differences(content["recipe"], recipe.to_dict()))
        raise WeightsError(
            f"checkpoint {path}: made with another recipe ({names}); restore it or choose another run folder"
        )
    if content["data_digest"] != data_digest:
        raise WeightsError(f"checkpoint {path}: made with other documents; restore them or choose another run folder")
    state.optimizer.load_state_dict(content["optimizer"])
    state.step = content["step"]
    state.data = DataState(*content["data"])
    state.seconds = content["seconds"]
    state.tokens = content["tokens"]
    state.arithmetic = content.get("arithmetic", "")  # checkpoints of older versions do not say
    return True


def _differences(old: dict[str, object], new: dict[str, object], path: str = "") -> list[str]:
    """Returns the keys that differ, as `table.key was -> is`."""
    found = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key} {a!r} -> {b!r}")
    return found


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
