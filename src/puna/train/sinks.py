"""Where else the figures of each step go, besides the run's log: TensorBoard and Weights & Biases.

In: names of sinks as a recipe's `log.sinks` has them, the folder of the run, and the step that it goes on from. Out:
sinks that take each step's scalars. Their packages are imported when a sink is opened, and only then. A step that is
done again after a resume stands there once. The record of a run is its log: what a killed process had handed to a
sink's own thread or process and that did not write it any more is missing there, and not in the log.

Source: TensorBoard's `SessionLog.START` (a later start at step k discards what is at k and behind it); W&B's `init`.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from puna.errors import ConfigError

PROJECT = "puna"
"""Of Weights & Biases, where WANDB_PROJECT names no other."""


class Sink(Protocol):
    """Takes the scalars of each step, in order, until it is closed."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the folder `tensorboard` of a run."""

    def __init__(self, run: Path, step: int, recipe: Mapping[str, Any]) -> None:
        _import("tensorboard")
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases, kept by its id in `wandb.json` beside the last step that it was told.

    Its own variables decide the rest: WANDB_MODE=offline writes the folder `wandb` of the run and sends nothing.
    """

    def __init__(self, run: Path, step: int, recipe: Mapping[str, Any]) -> None:
        """Raises ConfigError where nobody is logged in and it is not told to stay offline."""
        wandb = _import("wandb")
        self._file = run / "wandb.json"
        known: dict[str, Any] = {"id": uuid.uuid4().hex, "step": 0}
        if self._file.is_file():
            known = json.loads(self._file.read_text("utf-8"))
        self._id, self._told = known["id"], known["step"]
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=self._id,
                name=run.resolve().name,
                dir=str(run),
                config=dict(recipe),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            remedy = "run wandb login, set WANDB_MODE=offline, or leave it out of log.sinks"
            raise ConfigError(f"Weights & Biases: {error}; {remedy}") from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if step <= self._told:  # done again behind a checkpoint, with the same figures
            return
        self._run.log(dict(scalars), step=step)
        self._told = step
        partial = self._file.with_name(self._file.name + ".partial")
        partial.write_text(json.dumps({"id": self._id, "step": step}) + "\n", "utf-8")
        partial.replace(self._file)

    def close(self) -> None:
        self._run.finish()


_SINKS: Mapping[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


@contextmanager
def opened(names: Sequence[str], run: Path, step: int, recipe: Mapping[str, Any]) -> Iterator[list[Sink]]:
    """Yields the sinks of these names for a run that goes on behind `step`, and closes them at the end.

    Raises ConfigError for a package that is not installed, and as the sinks do.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            sinks.append(_SINKS[name](run, step, recipe))
            stack.callback(sinks[-1].close)
        yield sinks


def scalars(facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of the log by name, those of layers as `loads/LAYER/least` and `.../most`.

    `step` and `steps` are left out: the one is where the rest stands, the other never changes.
    """
    found = {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}
    for layer, (least, most) in enumerate(facts.get("loads", ())):
        found |= {f"loads/{layer}/least": float(least), f"loads/{layer}/most": float(most)}
    return {name: value for name, value in found.items() if name not in ("step", "steps")}


def _import(module: str, extra: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        extra = extra or module
        remedy = f'pip install "puna[{extra}]", or leave it out of log.sinks'
        raise ConfigError(f"log.sinks: {extra!r} needs a package that is not installed ({error}); {remedy}") from error
