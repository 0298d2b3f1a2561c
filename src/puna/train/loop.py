"""The training loop: batches in order, one update a step, a log line each, checkpoints, and a model at the end.

In: a recipe and the folder of a run. Out: in that folder `log.jsonl`, a checkpoint and, when the last step is done,
`model/` (Hugging Face layout) and `held_out.json`. Killed at any moment and started again on the same machine, the run
ends with the same bits: a step depends on nothing but the state before it. Progress goes to the `progress` function
that the caller gives. On several ranks every one runs this loop, and the first one speaks and writes for all.
"""

import errno
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO

import torch

from puna import __version__
from puna.config import LlamaConfig
from puna.errors import PunaError, WeightsError
from puna.meter import Emitted, Stopwatch, emitted
from puna.model.transformer import Llama
from puna.prompt.tokenizer import Tokenizer
from puna.records import ENERGY, Energy, read_energy, write_energy
from puna.train.account import account, sources_of
from puna.train.architecture import architecture
from puna.train.instructions import arithmetic
from puna.train.lengthen import lengthened
from puna.train.memory import keep_memory
from puna.train.next_token import NextToken
from puna.train.objective import Feed
from puna.train.optim import learning_rate
from puna.train.pack import Batch, DataState, PackedFeed, Packer
from puna.train.recipe import Recipe, RunRecipe
from puna.train.samples import Samples
from puna.train.sinks import opened, scalars
from puna.train.state import Saving, TrainingState, resume, save, trained
from puna.train.store import Progress, Store, tokenise
from puna.train.team import Team
from puna.train.update import Seen, Update
from puna.train.watch.work import write_work
from puna.weights.checkpoint import save_hf

LOG = "log.jsonl"
TOKENIZER_CONFIG = "tokenizer_config.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Outcome(NamedTuple):
    """How a call of `train` ended: steps done so far and whether the run is complete."""

    step: int
    finished: bool


class StepReport(NamedTuple):
    """What one step measured, of `steps`. loss in nats per learnt token; balance 1 is even; loads are over the mean of
    their layer: min_load, max_load of all layers, loads those of the least and the most read expert of each MoE layer.
    metrics: what the objective measures besides. skipped: why no update was made, else empty; documents: those in
    question, then.
    """

    step: int
    steps: int
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
    loads: list[tuple[float, float]]
    epoch: int
    metrics: Mapping[str, float] = MappingProxyType({})
    skipped: str = ""
    documents: tuple[str, ...] = ()


def model_config(recipe: Recipe) -> LlamaConfig:
    """Returns the configuration that `model.preset` names, lengthened as the recipe says. Raises ConfigError when there
    is none of that name."""
    return lengthened(architecture(recipe.model.preset, "model.preset"), recipe.lengthen)


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

    Sets the number of threads and deterministic algorithms for this process. A recipe with several ranks is trained by
    as many processes that torchrun started, each of which calls this with the same `run`. Raises PunaError as `Update`,
    `join`, `alone_in`, `resume`, `Saving` and `tokenise` say.
    """
    settle(recipe)
    run = Path(run)
    config = model_config(recipe)
    team = Team.of(recipe, config)
    with room(run), team.alone_in(run):
        return _trained(recipe, config, run, team, progress)


def _trained(recipe: Recipe, config: LlamaConfig, run: Path, team: Team, progress: Progress) -> Outcome:
    say = progress if team.is_first else lambda line: None
    with team.ends_together(run):
        with team.first_alone():  # makes what the others then find
            store = tokenise(recipe.data.documents, recipe.data.tokenizer, config.vision, recipe.data.store, say)
        if team.is_first:
            write_work(run, recipe, config)
        state, update = team.begin(recipe, config)
        feed = PackedFeed(make_packer(store, config, recipe), store.digest)
        steps = Steps(recipe, state, update, feed, run, team, say, watch=_samples(recipe, state, run, say))
    is_done = steps.run()
    if team.is_first:
        account(run, recipe, sources_of(store, recipe.data.passes))
    if is_done and team.is_first:
        model = state.model if team.mesh is None else trained(run, config, getattr(torch, recipe.compute.dtype))
        assert isinstance(model, Llama)
        finish(recipe, model, run, progress)
    return Outcome(state.step, finished=is_done)


def _samples(recipe: Recipe, state: TrainingState, run: Path, say: Progress) -> Callable[[int], None] | None:
    """Returns what writes samples after each step, where the recipe asks for any."""
    if not recipe.samples.every_steps:
        return None
    assert isinstance(state.model, Llama), "the recipe has one rank"
    return Samples(recipe, state.model, run, say).note


def settle(recipe: RunRecipe) -> None:
    """Sets this process's number of threads, has it keep its memory, and add numbers in the same order each time."""
    keep_memory()
    torch.set_num_threads(recipe.compute.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it


def finish(recipe: Recipe, model: Llama, run: Path, progress: Progress) -> None:
    """Writes the model with its tokenizer in Hugging Face layout and what it reaches on held-out documents, if any."""
    folder = emptied(run / "model")
    save_hf(model, model.config, folder)
    tokenizer = Path(recipe.data.tokenizer)
    for file in (tokenizer, tokenizer.with_name(TOKENIZER_CONFIG)):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    progress(f"model written to {folder}")
    if recipe.data.held_out:
        scores = measure(recipe, model, progress)
        (run / "held_out.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        progress(
            f"bits per byte on held-out documents: {json.dumps({k: v['bits_per_byte'] for k, v in scores.items()})}"
        )


def emptied(folder: Path) -> Path:
    """Returns a folder of the run, without what a start has left of it that was killed behind writing it, or before."""
    for left in (folder, *folder.parent.glob(f".{folder.name}.*.partial")):
        shutil.rmtree(left, ignore_errors=True)
    return folder


def measure(recipe: Recipe, model: Llama, progress: Progress) -> dict[str, dict[str, float]]:
    """Returns bits per byte, nats per token and counts on the held-out documents, per set/source and for all.

    Bytes are those of the learnt text; the loss on the tokens that end a text counts, their bytes (none) do not.
    """
    config = model_config(recipe)
    store = tokenise(recipe.data.held_out, recipe.data.tokenizer, config.vision, recipe.data.store, progress)
    packer = make_packer(store, config, _without_passes(recipe))
    loss = NextToken(model, balance=0.0, z=0.0, chunk=recipe.loss.chunk)
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


class Steps:
    """The remaining steps of a run, whatever is trained, on whatever data. Its energy is booked under `phase`."""

    def __init__(
        self,
        recipe: RunRecipe,
        state: TrainingState,
        update: Update,
        feed: Feed,
        run: Path,
        team: Team,
        say: Progress,
        phase: str = "pretrain",
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """`watch` is called with the number of each step that was made.

        Continues `state` from the newest checkpoint of folder `run`, if there is one. Raises as `resume` does."""
        self.recipe, self.state, self.update, self.feed = recipe, state, update, feed
        self.run_folder, self.team, self.say, self.phase, self.watcher = run, team, say, phase, watch
        if resume(state, recipe, feed.digest, run, team.group):
            say(f"resumed at step {state.step} of {recipe.schedule.steps}")
        here = arithmetic(recipe.compute.compile)
        if state.arithmetic not in ("", here):
            say(f"warning: began with {state.arithmetic}, goes on with {here}; the weights will differ in rounding")
        state.arithmetic = here
        self.saving: Saving | None = None
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.first_step, self.first_tokens = state.step, state.tokens
        self.earlier = read_energy(run / ENERGY)

    def run(self) -> bool:
        """Returns whether the last step was reached. Leaves a checkpoint either way."""
        readers = 1 if self.team.mesh is None else self.team.mesh.layout.readers
        reader = 0 if self.team.mesh is None else self.team.mesh.reader
        log = self.run_folder / LOG
        with (
            _pause_requests() as pause,  # also while others are asked who is left, when torchrun ends all
            self.team.ends_together(self.run_folder, lambda: f"step {self.state.step + 1}"),
            room(self.run_folder),
            Stopwatch(self.recipe.energy, None if self.team.is_first_of_host else []) as self.watch,
            self.feed.opened(self.state.data, reader, readers) as batches,
            _log(log, self.state.step) if self.team.is_first else nullcontext() as file,
            opened(self._sinks, self.run_folder, self.state.step, self.recipe.to_dict()) as sinks,
            self._saved(),
        ):
            is_asked = False
            while self.state.step < self.recipe.schedule.steps and not is_asked:
                report = self._step([batches.next() for _ in range(self.recipe.batch.accumulate // readers)])
                if file is not None:
                    file.write(json.dumps(_facts(report)) + "\n")
                for sink in sinks:
                    sink.write(report.step, scalars(_facts(report)))
                self.say(_line(report, self.recipe.schedule.steps))
                if self.watcher is not None:
                    self.watcher(report.step)
                is_due, is_asked, has_failed = self.team.agree(
                    self._is_due(), pause.is_set(), self.saving is not None and self.saving.has_failed
                )
                if is_due or has_failed:
                    self._save()
            if self.state.step != self.saved_step:
                self._save()
        return self.state.step >= self.recipe.schedule.steps

    @property
    def _sinks(self) -> tuple[str, ...]:
        return self.recipe.log.sinks if self.team.is_first else ()

    def _step(self, parts: list[tuple[Batch, DataState]]) -> StepReport:
        state, began = self.state, time.monotonic()
        lr_share = learning_rate(self.recipe.schedule, state.step)
        state.balance.apply(state.step)
        limits = state.recent.limits(self.recipe.spikes)
        seen = self.update([batch for batch, _ in parts], lr_share, self.feed.names, limits)
        if seen.refused:
            self._leave_out(seen)
        else:
            state.balance.learn(seen.load)
            state.recent.note(seen.loss, seen.grad_norm, self.recipe.spikes.window)
        seconds = time.monotonic() - began
        state.step += 1
        state.data = parts[-1][1]
        state.seconds += seconds
        state.tokens += seen.tokens
        return _report(self.recipe, state, seen, lr_share, seconds)

    def _leave_out(self, seen: Seen) -> None:
        """Has the run go on without this step, or raises PunaError naming the documents, as the recipe wants it."""
        wish = self.recipe.spikes
        self.state.recent.left_out += 1
        where = f"step {self.state.step + 1}: {seen.refused}, documents {_shown(seen.suspects)}"
        if wish.action == "stop":
            raise PunaError(f"{where}; lower optimizer.lr, correct these documents, or set spikes.action to skip")
        if self.state.recent.left_out == wish.in_a_row:
            raise PunaError(
                f"{where}; so were {wish.in_a_row} steps in a row: lower optimizer.lr or raise spikes.sigma"
            )

    def _is_due(self) -> bool:
        when = self.recipe.checkpoint
        steps, seconds = self.state.step - self.saved_step, time.monotonic() - self.saved_at
        return self.team.is_first and (0 < when.every_steps <= steps or 0 < when.every_seconds <= seconds)

    @contextmanager
    def _saved(self) -> Iterator[None]:
        """Nobody writes in the run's folder any more when this is left, however."""
        try:
            yield
        except BaseException:
            if self.saving is not None:
                self.saving.join()
            raise
        if self.saving is not None:
            self.saving.wait()

    def _save(self) -> None:
        self._note_energy()
        if self.saving is not None:
            self.saving.wait()
        self.saving = save(self.state, self.recipe, self.feed.digest, self.run_folder, self.team.saving)
        self.saved_at, self.saved_step = time.monotonic(), self.state.step

    def _note_energy(self) -> None:
        """Writes what this start took so far, as the last line of the run's record."""
        used, site = self.team.together(self.watch.used()), self.recipe.energy
        if not self.team.is_first:
            return
        known = emitted(used, site)
        record = Energy(
            phase=self.phase,
            date=self.date,
            seconds=used.seconds,
            joules=used.joules,
            **asdict(site),
            **({name: None for name in Emitted._fields} if known is None else known._asdict()),
            first_step=self.first_step,
            last_step=self.state.step,
            tokens=self.state.tokens - self.first_tokens,
            version=__version__,
        )
        write_energy(self.run_folder / ENERGY, [*self.earlier, record])


def _report(recipe: RunRecipe, state: TrainingState, seen: Seen, lr_share: float, seconds: float) -> StepReport:
    even = 1 / max(seen.load.shape[-1], 1)
    loads = torch.stack([seen.load.amin(-1), seen.load.amax(-1)], dim=-1) / even if seen.load.numel() else seen.load
    return StepReport(
        step=state.step,
        steps=recipe.schedule.steps,
        loss=seen.loss,
        balance=seen.balance,
        lr=recipe.optimizer.lr * lr_share,
        grad_norm=seen.grad_norm,
        tokens=seen.tokens,
        learnt=0 if seen.refused else int(seen.weight),
        tiles=seen.tiles,
        seconds=round(seconds, 3),
        tokens_per_second=round(seen.tokens / seconds, 1),
        max_load=round(float(seen.load.max()) / even, 3) if seen.load.numel() else 1.0,
        min_load=round(float(seen.load.min()) / even, 3) if seen.load.numel() else 1.0,
        loads=[(round(least, 3), round(most, 3)) for least, most in loads.tolist()],
        epoch=state.data.epoch,
        metrics={name: round(value, 6) for name, value in seen.metrics.items()},
        skipped=seen.refused,
        documents=seen.suspects,
    )


def _facts(report: StepReport) -> dict[str, Any]:
    """Returns a line of the log; metrics stand beside the rest. JSON has no numbers that are not finite."""
    facts = report._asdict()
    facts |= dict(facts.pop("metrics"))
    if not report.skipped:
        del facts["skipped"], facts["documents"]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}


def _line(report: StepReport, steps: int) -> str:
    if report.skipped:
        return f"step {report.step}/{steps}  left out: {report.skipped}, documents {_shown(report.documents)}"
    left = (steps - report.step) * report.seconds
    more = "".join(f"{name} {value:.3f}  " for name, value in report.metrics.items())
    return (
        f"step {report.step}/{steps}  loss {report.loss:.3f}  {more}balance {report.balance:.2f}  "
        f"grad {report.grad_norm:.2f}  lr {report.lr:.1e}  load {report.min_load:.1f}-{report.max_load:.1f}  "
        f"{report.tokens_per_second:.0f} tok/s  {left / 60:.0f} min left"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _log(file: Path, step: int) -> TextIO:
    """Opens the log behind the line of `step`."""
    _truncate_log(file, step)
    return file.open("a", buffering=1, encoding="utf-8")


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


@contextmanager
def room(run: Path) -> Iterator[None]:
    """Says what to do when there is no room left for the files of a run: raises WeightsError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise WeightsError(
            f"{error.filename or run}: cannot be written ({error.strerror}); make room and start as before: the run "
            "goes on from its last checkpoint"
        ) from error


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
