"""The state of a training run, and its checkpoint: a folder, written whole or not at all, by all ranks together.

In and out: a `TrainingState`. The weights are held once, as the optimiser's float32 masters. Tensors are written by
torch's distributed checkpoints, each rank its parts, so that a run may go on on other ranks: the bits are the same.
Beside them `state.json` says the rest: step and data, the digests of recipe and data (another recipe cannot continue a
run, for then the weights would be of neither), and a hash of every file, by which damage is found before it is used.
Writing goes on behind the next steps, from a copy. A folder gets its name when everything in it is on disk.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama, set_parameter, start_value
from puna.train.balance import Balance
from puna.train.fp8 import settle
from puna.train.lengthen import lengthened
from puna.train.mesh import Mesh, is_loss
from puna.train.optim import Optimizer, cast
from puna.train.pack import DataState
from puna.train.recipe import Recipe, RunRecipe
from puna.train.shards import local, part_of
from puna.train.spikes import Recent
from puna.train.spread import spread
from puna.train.stage import Stage
from puna.train.transfer import Scale, scales_of
from puna.weights.source import open_source
from puna.weights.stored import Staging

CHECKPOINT = "checkpoint"
"""Beginning of the names of checkpoints within the folder of a run; the number of steps follows."""

STATE = "state.json"
_OLD = "checkpoint.pt"  # of version 0.1
_Made = TypeVar("_Made")


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Everything that the next step depends on. `step` counts finished steps. Changed in place by the loop."""

    step: int
    model: Llama | Stage
    optimizer: Optimizer
    balance: Balance
    data: DataState
    seconds: float
    """Time spent in steps so far, over all starts of the run."""
    tokens: int
    """Tokens seen so far, without padding."""
    arithmetic: str = ""
    """How the last process added numbers, as `instructions.arithmetic` says it."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """What an objective remembers from step to step."""
    recent: Recent = field(default_factory=Recent)
    """What the last steps were like."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors of the state, the live ones, by names that are their own in the whole model."""
        return self.optimizer.tensors() | self.balance.biases | self.others


def start_weights(recipe: Recipe, config: LlamaConfig) -> Llama:
    """Returns the float32 model that a run begins with. Raises as `start_values` does."""
    model = _described(config)
    for name, value in start_values(recipe, config):
        set_parameter(model, name, value)
    return model


def start_values(recipe: Recipe, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields name and float32 value of each parameter that a run begins with, one at a time, on the CPU: a pure
    function of the recipe and of the checkpoint it names.

    Raises ConfigError or WeightsError when that checkpoint is missing, damaged or of another model.
    """
    if not recipe.model.start:
        generator, scales = torch.Generator().manual_seed(recipe.model.seed), scales_of(recipe, config)
        for name, parameter in _described(config).named_parameters():
            yield name, start_value(name, parameter.shape, config, generator) * scales.get(name, Scale()).start
        return
    source, staging = open_source(Path(recipe.model.start), torch.float32), Staging()
    if lengthened(source.config, recipe.lengthen) != config:
        raise ConfigError(f"model.start: {recipe.model.start} is not a {recipe.model.preset}; name its own preset")
    for name in source.pieces:
        yield name, source.read(name, staging)


def start_on_ranks(recipe: Recipe, config: LlamaConfig, mesh: Mesh) -> tuple[Stage, Optimizer]:
    """Returns this rank's stage and its optimiser, with the values of `start_weights`: of the others' it never holds
    more than one parameter. Raises as `start_values` does."""
    model, dtype = settle(_described(config), recipe.compute), getattr(torch, recipe.compute.dtype)
    stage = spread(model, mesh, recipe.loss, dtype, compiled=recipe.compute.compile)
    stage.to_empty(device=recipe.compute.device)
    own = dict(stage.model.named_parameters())
    for name, value in start_values(recipe, config):
        if name in own:
            local(own[name]).copy_(part_of(value, own[name]))
    scales = scales_of(recipe, config)
    return stage, Optimizer(own.items(), recipe.optimizer, stages=recipe.parallel.pipeline, scales=scales)


def _described(config: LlamaConfig) -> Llama:
    """A model without values."""
    with torch.device("meta"):
        return Llama(config)


def begin(recipe: Recipe, config: LlamaConfig) -> TrainingState:
    """Returns the state of one process before the first step. Raises as `start_weights` does."""
    model = settle(start_weights(recipe, config), recipe.compute).to(recipe.compute.device)
    optimizer = Optimizer(model.named_parameters(), recipe.optimizer, scales=scales_of(recipe, config))
    cast(model, getattr(torch, recipe.compute.dtype))
    return first_state(recipe, model, optimizer)


def first_state(recipe: RunRecipe, model: Llama | Stage, optimizer: Optimizer) -> TrainingState:
    """Returns the state before the first step of a model, or of a rank's part of one."""
    layers = model if isinstance(model, Llama) else model.model
    balance = Balance(layers, model.config.text.moe_layers, recipe.schedule, recipe.loss.bias_rate)
    return TrainingState(
        step=0, model=model, optimizer=optimizer, balance=balance, data=DataState(), seconds=0.0, tokens=0
    )


class Saving:
    """A checkpoint that is being written. Nothing else may be saved before `wait` has returned."""

    def __init__(
        self, state: TrainingState, recipe: RunRecipe, data_digest: str, run: Path, group: ProcessGroup | None
    ):
        self._tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
        self._facts = {
            "recipe": recipe.to_dict(),
            "recipe_digest": recipe.digest,
            "data_digest": data_digest,
            "step": state.step,
            "data": list(state.data),
            "seconds": state.seconds,
            "tokens": state.tokens,
            "arithmetic": state.arithmetic,
            "updates": state.optimizer.step_count,
            "recent": asdict(state.recent),
        }
        self._home = run / f"{CHECKPOINT}-{state.step:08d}"
        self._keep = recipe.checkpoint.keep
        self._group = group
        self._rank = 0 if group is None else distributed.get_rank()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="puna checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Returns when the checkpoint is on disk, or could not be written."""
        self._thread.join()
        self._tensors.clear()

    def wait(self) -> Self:
        """Returns when the checkpoint is on disk. Raises WeightsError when it could not be written, and what
        torch.distributed raises when another rank was lost."""
        self.join()
        if self._error is not None:
            raise self._error
        return self

    @property
    def has_failed(self) -> bool:
        """Whether it is known that the checkpoint cannot be written."""
        return self._error is not None

    def _write(self) -> None:
        partial = self._home.with_name(f"{self._home.name}.partial")
        try:
            self._write_files(partial)
        except (OSError, CheckpointException) as error:
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            reason = str(error).strip().splitlines()[-1]
            self._error = WeightsError(
                f"checkpoint {self._home}: cannot be written ({reason}); the one before is kept: make room and go on"
            )
        except Exception as error:  # another rank was lost, or puna is wrong: `wait` raises it
            self._error = error

    def _write_files(self, partial: Path) -> None:
        """In four steps. One that fails on any rank fails on all: none waits for another that has given up."""
        group, rank = self._group, self._rank
        _alike(group, lambda: _emptied(partial) if rank == 0 else None)
        with _quiet():
            write_tensors(self._tensors, checkpoint_id=partial, process_group=group, no_dist=group is None)
        hashes: dict[str, str] = {}
        for each in _alike(group, lambda: _hashes(partial, rank)):
            hashes |= each
        _alike(group, lambda: self._complete(partial, hashes) if rank == 0 else None)

    def _complete(self, partial: Path, hashes: Mapping[str, str]) -> None:
        """Gives a checkpoint its name when all of it is on disk, and removes those that need not be kept."""
        with (partial / STATE).open("w", encoding="utf-8") as file:
            json.dump(self._facts | {"files": hashes}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(partial)
        shutil.rmtree(self._home, ignore_errors=True)
        os.replace(partial, self._home)
        _sync_folder(self._home.parent)
        for _, other in checkpoints(self._home.parent)[: -self._keep]:
            shutil.rmtree(other, ignore_errors=True)


def save(
    state: TrainingState, recipe: RunRecipe, data_digest: str, run: str | Path, group: ProcessGroup | None = None
) -> Saving:
    """Begins to write a checkpoint in folder `run`. Those before stay until the new one is on disk.

    `group`: all ranks, of which every one calls this, on a group of its own. They share the folder.
    """
    return Saving(state, recipe, data_digest, Path(run), group)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Returns step and folder of every complete checkpoint of a run, the newest last."""
    found = [(re.fullmatch(rf"{CHECKPOINT}-(\d+)", path.name), path) for path in run.glob(f"{CHECKPOINT}-*")]
    return sorted((int(name[1]), path) for name, path in found if name and (path / STATE).is_file())


def resume(
    state: TrainingState, recipe: RunRecipe, data_digest: str, run: str | Path, group: ProcessGroup | None = None
) -> bool:
    """Continues `state` from the newest checkpoint of folder `run`; returns False when there is none.

    Raises WeightsError when the checkpoint is damaged or was made with another recipe or other data.
    """
    run = Path(run)
    if (run / _OLD).exists():
        raise WeightsError(f"checkpoint {run / _OLD}: of an older version; remove it to begin anew")
    found = checkpoints(run)
    if not found:
        return False
    home = found[-1][1]
    facts = _facts(home, group)
    if facts["recipe_digest"] != recipe.digest:
        names = ", ".join(_differences(facts["recipe"], json.loads(json.dumps(recipe.to_dict()))))
        raise WeightsError(
            f"checkpoint {home}: made with another recipe ({names}); restore it or choose another run folder"
        )
    if facts["data_digest"] != data_digest:
        raise WeightsError(f"checkpoint {home}: made with other documents; restore them or choose another run folder")
    _read(state.tensors(), home, group)
    state.optimizer.step_count = facts["updates"]
    state.optimizer.write_parameters()
    state.step = facts["step"]
    epoch, sample, waiting = facts["data"]
    state.data = DataState(epoch, sample, tuple(waiting))
    state.seconds = facts["seconds"]
    state.tokens = facts["tokens"]
    state.arithmetic = facts["arithmetic"]
    state.recent = Recent(**facts.get("recent", {}))
    return True


def trained(run: Path, config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """Returns the model of a run's newest checkpoint in `dtype`, whole, in one process: a tensor at a time."""
    home = checkpoints(run)[-1][1]
    model = _described(config)
    for name, parameter in list(model.named_parameters()):
        master = torch.empty(parameter.shape)
        _read({f"{name}.master": master}, home, None)
        set_parameter(model, name, master.to(dtype))
    return model


def _read(tensors: Mapping[str, Tensor], home: Path, group: ProcessGroup | None) -> None:
    """Fills tensors, spread as they are, with those of the same names."""
    try:
        with _quiet():
            read_tensors(dict(tensors), checkpoint_id=home, process_group=group, no_dist=group is None)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        if is_loss(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise WeightsError(f"checkpoint {home}: is of another model ({reason}); start a new run") from error


def _facts(home: Path, group: ProcessGroup | None) -> dict[str, Any]:
    """Returns what `state.json` says, when all files are what it says; each rank checks some of them."""
    rank, world = (0, 1) if group is None else (distributed.get_rank(), distributed.get_world_size())
    try:
        facts: dict[str, Any] = json.loads((home / STATE).read_text(encoding="utf-8"))
        own = sorted(facts["files"].items())[rank::world]
        damaged = [name for name, known in own if not (home / name).is_file() or _hash(home / name) != known]
    except (OSError, ValueError, KeyError) as error:
        damaged = [f"{STATE}: {error!r}"]
    if damaged := sorted(name for names in _all_of(damaged, group) for name in names):
        older = [step for step, other in checkpoints(home.parent) if other != home]
        where = f"go on from step {older[-1]}" if older else "begin anew; checkpoint.keep says how many are kept"
        raise WeightsError(f"checkpoint {home}: {damaged[0]} is damaged; remove that folder to {where}")
    return facts


@contextmanager
def _quiet() -> Iterator[None]:
    """One process is meant where there is one; torch says so each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _hashes(folder: Path, rank: int) -> dict[str, str]:
    """Returns the hashes of the files that this rank has written."""
    own = [file for file in folder.iterdir() if file.name.startswith(f"__{rank}_")]
    return {file.name: _hash(file) for file in own + ([folder / ".metadata"] if rank == 0 else [])}


def _alike(group: ProcessGroup | None, work: Callable[[], _Made]) -> list[_Made]:
    """Returns what the `work` of every rank makes. Where that of one fails all raise OSError, saying whose."""
    try:
        own: tuple[_Made | None, str] = work(), ""
    except OSError as error:
        own = None, str(error)
    found = list(_all_of(own, group))
    if failed := [f"rank {rank}: {reason}" for rank, (_, reason) in enumerate(found) if reason]:
        raise OSError(failed[0] if group is not None else own[1])
    return [made for made, _ in found]


def _all_of(own: Any, group: ProcessGroup | None) -> Iterator[Any]:
    """Yields what every rank has."""
    if group is None:
        yield own
        return
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, own, group=group)
    yield from found


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
