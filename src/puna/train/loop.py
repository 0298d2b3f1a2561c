"""The training loop: batches in order, one update a step, a log line each, checkpoints, and a model at the end.

In: a recipe and the folder of a run. Out: in that folder `log.jsonl`, `checkpoint.pt` and, when the last step is done,
`model/` (Hugging Face layout) and `held_out.json`. Killed at any moment and started again on the same machine, the run
ends with the same bits: a step depends on nothing but the state before it. Progress goes to the `progress` function
that the caller gives.
"""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError, PunaError
from puna.presets import PRESETS
from puna.prompt.tokenizer import Tokenizer
from puna.train.instructions import arithmetic
from puna.train.next_token import Loss, NextToken
from puna.train.optim import learning_rate
from puna.train.pack import Batch, Packer, Prefetch
from puna.train.recipe import Recipe
from puna.train.state import TrainingState, begin, resume, save
from puna.train.store import Progress, Store, tokenise
from puna.weights.checkpoint import save_hf
from puna.weights.configs import from_hf

LOG = "log.jsonl"
TOKENIZER_CONFIG = "tokenizer_config.json"


class Outcome(NamedTuple):
    """How a call of `train` ended: steps done so far and whether the run is complete."""

    step: int
    finished: bool


class StepReport(NamedTuple):
    """What one step measured. loss in nats per learnt token; balance 1 is even; load is max over mean, worst layer."""

    step: int
    loss: float
    balance: float
    lr: float
    grad_norm: float
    tokens: int
    learnt: int
    tiles: int
    seconds: float
    tokens_per_second: float
    max_load: float
    min_load: float
    epoch: int


def model_config(recipe: Recipe) -> LlamaConfig:
    """Returns the configuration that `model.preset` names. Raises ConfigError when there is none of that name."""
    name = recipe.model.preset
    if name.endswith(".json"):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f"model.preset: {name} does not exist; give a config.json or one of {', '.join(PRESETS)}")
        return from_hf(json.loads(file.read_text(encoding="utf-8")))
    if name not in PRESETS:
        raise ConfigError(f"model.preset: {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def make_packer(store: Store, config: LlamaConfig, recipe: Recipe) -> Packer:
    """Returns the packer that a recipe's [batch] and [data] tables describe."""
    batch = recipe.batch
    return Packer(
        store,
        config,
        rows=batch.rows,
        row_len=batch.row_len,
        tiles=batch.tiles,
        window=batch.window,
        seed=recipe.data.seed,
        passes=recipe.data.passes,
    )


def train(recipe: Recipe, run: str | Path, progress: Progress) -> Outcome:
    """Trains until the last step, or until SIGTERM or SIGINT asks for a pause, and resumes when `run` has a checkpoint.

    Sets the number of threads and deterministic algorithms for this process. Raises PunaError as `step_once`, `resume`
    and `tokenise` say.
    """
    torch.set_num_threads(recipe.compute.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    config = model_config(recipe)
    store = tokenise(recipe.data.documents, recipe.data.tokenizer, config.vision, recipe.data.store, progress)
    packer = make_packer(store, config, recipe)
    state = begin(recipe, config)
    if resume(state, recipe, store.digest, run):
        progress(f"resumed at step {state.step} of {recipe.schedule.steps}")
    here = arithmetic(recipe.compute.compile)
    if state.arithmetic not in ("", here):
        progress(f"warning: began with {state.arithmetic}, goes on with {here}; the weights will differ in rounding")
    state.arithmetic = here
    _truncate_log(run / LOG, state.step)
    with _pause_requests() as pause, Prefetch(packer, state.data) as batches, (run / LOG).open("a", buffering=1) as log:
        if not _steps(recipe, state, packer, batches, run, store.digest, pause, log.write, progress):
            return Outcome(state.step, finished=False)
    finish(recipe, state, run, progress)
    return Outcome(state.step, finished=True)


def step_once(
    state: TrainingState, loss: NextToken, batches: list[Batch], lr_share: float, names: Callable[[Batch], list[str]]
) -> tuple[list[Loss], float]:
    """Makes one update from all `batches` together. Returns their losses and the gradient norm before clipping.

    Raises PunaError naming step and documents when a loss or a gradient is not finite; the state is then unchanged.
    """
    total = torch.stack([batch.weights.sum() for batch in batches]).sum().clamp(min=1.0)
    losses = []
    for batch in batches:
        part = loss(batch, total, share=1 / len(batches))
        part.total.backward()  # type: ignore[no-untyped-call]
        losses.append(part)
        if not math.isfinite(float(part.nll)):
            raise PunaError(_not_finite("loss", state.step, names(batch)))
    norm = float(state.optimizer.step(lr_share))
    if not math.isfinite(norm):
        raise PunaError(_not_finite("gradient", state.step, [name for batch in batches for name in names(batch)]))
    return losses, norm


def finish(recipe: Recipe, state: TrainingState, run: Path, progress: Progress) -> None:
    """Writes the model with its tokenizer in Hugging Face layout and what it reaches on held-out documents, if any."""
    folder = run / "model"
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed while it measured has written it before
    save_hf(state.model, state.model.config, folder)
    tokenizer = Path(recipe.data.tokenizer)
    for file in (tokenizer, tokenizer.with_name(TOKENIZER_CONFIG)):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    progress(f"model written to {folder}")
    if recipe.data.held_out:
        scores = measure(recipe, state.model, progress)
        (run / "held_out.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        progress(
            f"bits per byte on held-out documents: {json.dumps({k: v['bits_per_byte'] for k, v in scores.items()})}"
        )


def measure(recipe: Recipe, model: torch.nn.Module, progress: Progress) -> dict[str, dict[str, float]]:
    """Returns bits per byte, nats per token and counts on the held-out documents, per set/source and for all.

    Bytes are those of the learnt text; the loss on the tokens that end a text counts, their bytes (none) do not.
    """
    config = model_config(recipe)
    store = tokenise(recipe.data.held_out, recipe.data.tokenizer, config.vision, recipe.data.store, progress)
    packer = make_packer(store, config, _without_passes(recipe))
    loss = NextToken(model, balance=0.0, z=0.0, chunk=recipe.loss.chunk)  # type: ignore[arg-type]
    n_bytes = _bytes_per_token(Tokenizer.load(recipe.data.tokenizer), config)
    sums: dict[str, list[float]] = {}
    for number, batch in enumerate(packer.once()):
        losses = loss.token_losses(batch)
        for b, row in enumerate(batch.pieces):
            for d, piece in enumerate(row):
                document = int(packer.pieces.document[piece])
                here = (batch.documents[b] == d) & (batch.weights[b] > 0)
                nats, tokens = float(losses[b][here].double().sum()), float(here.sum())
                text = float(n_bytes[batch.targets[b][here]].sum())
                source = store.source_names[store.sources[document]]
                is_first = float(packer.pieces.start[piece] == store.offsets[document])
                for key in {f"{store.sets[document]}/{source}", "all"}:
                    part = sums.setdefault(key, [0.0, 0.0, 0.0, 0.0])
                    for i, value in enumerate((nats, tokens, text, is_first)):
                        part[i] += value
        progress(f"held-out: batch {number + 1}")
    return {
        key: {
            "bits_per_byte": nats / math.log(2) / max(text, 1.0),
            "nats_per_token": nats / max(tokens, 1.0),
            "tokens": tokens,
            "bytes": text,
            "documents": documents,
        }
        for key, (nats, tokens, text, documents) in sorted(sums.items())
    }


def _steps(
    recipe: Recipe,
    state: TrainingState,
    packer: Packer,
    batches: Prefetch,
    run: Path,
    data_digest: str,
    pause: threading.Event,
    write: Callable[[str], object],
    progress: Progress,
) -> bool:
    """Runs the remaining steps; returns whether the last one was reached. Leaves a checkpoint either way."""
    model = state.model
    options = recipe.loss
    loss = NextToken(model, balance=options.balance, z=options.z, chunk=options.chunk, compiled=recipe.compute.compile)
    saved_at, saved_step = time.monotonic(), state.step
    while state.step < recipe.schedule.steps and not pause.is_set():
        began = time.monotonic()
        parts = [batches.next() for _ in range(recipe.batch.accumulate)]
        lr_share = learning_rate(recipe.schedule, state.step)
        losses, norm = step_once(state, loss, [batch for batch, _ in parts], lr_share, packer.names)
        seconds = time.monotonic() - began
        state.step += 1
        state.data = parts[-1][1]
        state.seconds += seconds
        report = _report(recipe, state, [batch for batch, _ in parts], losses, norm, lr_share, seconds)
        state.tokens += report.tokens
        write(json.dumps(report._asdict()) + "\n")
        progress(_line(report, recipe.schedule.steps))
        if _is_due(recipe, state.step - saved_step, time.monotonic() - saved_at):
            save(state, recipe, data_digest, run)
            saved_at, saved_step = time.monotonic(), state.step
    if state.step != saved_step:
        save(state, recipe, data_digest, run)
    return state.step >= recipe.schedule.steps


def _report(
    recipe: Recipe,
    state: TrainingState,
    batches: list[Batch],
    losses: list[Loss],
    norm: float,
    lr_share: float,
    seconds: float,
) -> StepReport:
    learnt = sum(float(part.weight) for part in losses)
    load = torch.stack([part.load for part in losses]).mean(0)  # L E
    even = 1 / max(load.shape[-1], 1)
    tokens = sum(batch.n_tokens for batch in batches)
    return StepReport(
        step=state.step,
        loss=sum(float(part.nll) * float(part.weight) for part in losses) / max(learnt, 1.0),
        balance=sum(float(part.balance) for part in losses) / len(losses),
        lr=recipe.optimizer.lr * lr_share,
        grad_norm=norm,
        tokens=tokens,
        learnt=int(learnt),
        tiles=sum(batch.n_tiles for batch in batches),
        seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1),
        max_load=round(float(load.max()) / even, 3) if load.numel() else 1.0,
        min_load=round(float(load.min()) / even, 3) if load.numel() else 1.0,
        epoch=state.data.epoch,
    )


def _line(report: StepReport, steps: int) -> str:
    left = (steps - report.step) * report.seconds
    return (
        f"step {report.step}/{steps}  loss {report.loss:.3f}  balance {report.balance:.2f}  "
        f"grad {report.grad_norm:.2f}  lr {report.lr:.1e}  load {report.min_load:.1f}-{report.max_load:.1f}  "
        f"{report.tokens_per_second:.0f} tok/s  {left / 60:.0f} min left"
    )


def _is_due(recipe: Recipe, steps: int, seconds: float) -> bool:
    when = recipe.checkpoint
    return 0 < when.every_steps <= steps or 0 < when.every_seconds <= seconds


def _not_finite(what: str, step: int, names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"step {step}: the {what} is not finite, documents {shown}; lower optimizer.lr or correct these documents"


def _truncate_log(log: Path, step: int) -> None:
    """Drops the lines behind the checkpoint, which will be written again, and a half line of a killed process."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    partial = log.with_name(LOG + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(log)


def _without_passes(recipe: Recipe) -> Recipe:
    return replace(recipe, data=replace(recipe.data, passes={}))


def _bytes_per_token(tokenizer: Tokenizer, config: LlamaConfig) -> torch.Tensor:
    """Returns the number of bytes of each token's text, float32 [V]; 0 for special tokens and unused ids."""
    lengths = [0] * config.text.vocab_size
    for i in range(min(tokenizer.vocab_size, len(lengths))):
        if not tokenizer.is_special(i):
            lengths[i] = len(tokenizer.decode_bytes([i]))
    return torch.tensor(lengths, dtype=torch.float32)


@contextmanager
def _pause_requests() -> Iterator[threading.Event]:
    """Turns SIGTERM and SIGINT into an event while the loop runs; a second one ends the process as usual.

    Outside the main thread signals cannot be taken: then only the event itself is there.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
