"""Distillation: a model learns what a larger one thinks of every continuation, not only which one was written.

In: a workbench and the recipe's teacher. Out: the exercise. The teacher reads each batch along with the student, or,
with `top_k`, reads all conversations once before the first step: of each learnt token its most probable successors are
kept with what is left for all others, in files that know which teacher and which conversations they are of, and the
teacher is not in memory any more while the student trains.

    loss = soft * T^2 * KL(teacher at T, student at T) + (1 - soft) * cross entropy         of each learnt token

T is a temperature. `soft` goes from its first value to its last along the run, in a straight line. With `top_k` the
divergence is between k + 1 outcomes, the last of which is "any other": never above that between all.
Source: temperatures and T^2, arXiv 1503.02531 section 2. Pictures are read by both and learnt by neither.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama
from puna.prompt.tokenizer import Tokenizer
from puna.quant import swap
from puna.records import write_whole
from puna.train import forward
from puna.train.next_token import Loss
from puna.train.objective import Exercise
from puna.train.pack import Batch, PackedFeed, Packer
from puna.train.recipe import LossRecipe
from puna.train.store import Progress
from puna.train.tune_recipe import DistillRecipe
from puna.train.workbench import Workbench, fingerprint
from puna.weights.checkpoint import load, open_config
from puna.weights.hub import resolve

TAUGHT = "teacher"
_FACTS, _PLACES, _IDS, _LOGS, _REST = "teacher.json", "places.npy", "ids.npy", "logs.npy", "rest.npy"


class Opinion(Protocol):
    """What a teacher thinks of the learnt tokens of one batch, in order."""

    def divergence(self, rows: slice, student: Tensor) -> Tensor:
        """Returns KL(teacher, student) in nats, float32 [C], of these rows. student: log-probabilities [C V] at T."""
        ...


class Teacher(Protocol):
    """Whom a student learns from."""

    def of(self, batch: Batch, learnt: Tensor) -> Opinion:
        """Returns its opinion of the tokens that stand at `learnt`, int64 [R], places in the flat batch."""
        ...


def begin(bench: Workbench) -> Exercise:
    """Returns the loss of a student over the recipe's conversations.

    Raises ConfigError where teacher and student do not read the same tokens and tiles, and WeightsError where what a
    teacher said is damaged.
    """
    recipe, options = bench.recipe, bench.recipe.distill
    feed = bench.feed()
    home = resolve(options.teacher)
    check_alike(home, bench)
    asked = options.top_k > 0
    teacher: Teacher = remembered(bench, feed, home) if asked else Present(_load(home, bench), options.temperature)
    n_batches = recipe.schedule.steps * recipe.batch.accumulate
    recompute = recipe.parallel.recompute
    return Exercise(Distilled(bench.model, teacher, options, recipe.loss, n_batches, recompute=recompute), feed)


class Distilled:
    """An `Objective`. `n_batches` is how many a whole run sees, by which `soft` moves."""

    def __init__(
        self,
        model: Llama,
        teacher: Teacher,
        options: DistillRecipe,
        router: LossRecipe,
        n_batches: int,
        *,
        recompute: bool = False,
    ) -> None:
        self.model, self.teacher, self.options, self.router = model, teacher, options, router
        self.n_batches, self.recompute = n_batches, recompute
        self.seen = torch.zeros((), dtype=torch.int64)

    def total(self, batch: Batch) -> Tensor:
        """Returns the sum of the loss weights."""
        return batch.weights.sum()

    def tensors(self) -> dict[str, Tensor]:
        """Returns how many batches it has seen."""
        return {"seen": self.seen}

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        states, routes = forward.hidden(self.model, batch, recompute=self.recompute)
        learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
        weights, targets = batch.weights.flatten()[learnt], batch.targets.flatten()[learnt]  # R
        soft_nats, hard_nats = self._costs(states[learnt], targets, self.teacher.of(batch, learnt))  # R
        soft = self._soft()
        self.seen += 1
        costs = soft * self.options.temperature**2 * soft_nats + (1 - soft) * hard_nats
        router = forward.router_losses(routes, batch)
        routed = self.router.balance * router.balance + self.router.z * router.z
        weight, divergence, hard = weights.sum(), soft_nats.detach() @ weights, hard_nats.detach() @ weights
        return Loss(
            total=costs @ weights / total_weight + routed * share,
            nll=hard / weight.clamp(min=1e-9),
            balance=router.balance.detach(),
            weight=weight,
            load=router.load.detach(),
            metrics={"divergence": divergence},
        )

    def _soft(self) -> float:
        first, last = self.options.soft, self.options.soft_last
        return first + (last - first) * min(1.0, int(self.seen) / self.n_batches)

    def _costs(self, states: Tensor, targets: Tensor, opinion: Opinion) -> tuple[Tensor, Tensor]:
        """The divergence and the cross entropy of each row, float32 [R] each; a chunk of logits exists at a time."""
        n, chunk = len(targets), self.router.chunk
        parts = [
            checkpoint(self._of_chunk, states[rows], targets[rows], opinion, rows, use_reentrant=False)
            for rows in (slice(first, min(first + chunk, n)) for first in range(0, n, chunk))
        ]
        if not parts:
            none = states.new_zeros(0, dtype=torch.float32)
            return none, none
        soft, hard = (torch.cat(column) for column in zip(*parts, strict=True))
        return soft, hard

    def _of_chunk(self, states: Tensor, targets: Tensor, opinion: Opinion, rows: slice) -> tuple[Tensor, Tensor]:
        logits = self.model.logits(states)  # C V
        student = (logits / self.options.temperature).log_softmax(-1)  # C V
        return opinion.divergence(rows, student), F.cross_entropy(logits, targets, reduction="none")


class Present:
    """A `Teacher` that is in memory and reads along."""

    def __init__(self, model: Llama, temperature: float) -> None:
        self.model, self.temperature = model, temperature

    @torch.no_grad()
    def of(self, batch: Batch, learnt: Tensor) -> Opinion:
        """Returns what it thinks of all tokens of the vocabulary."""
        return _Spoken(self.model, forward.hidden(self.model, batch).states[learnt], self.temperature)


class _Spoken(NamedTuple):
    model: Llama
    states: Tensor
    temperature: float

    def divergence(self, rows: slice, student: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = log_probs(self.model, self.states[rows], self.temperature)  # C V
        return (teacher.exp() * (teacher - student)).sum(-1)


class Kept:
    """A `Teacher` whose opinions were written down by `write_down`, in `folder`."""

    def __init__(self, folder: Path, packer: Packer) -> None:
        self._starts = packer.pieces.start
        places = np.load(folder / _PLACES)
        self._order = np.argsort(places, kind="stable")
        self._places = places[self._order]
        self._ids, self._logs, self._rest = (np.load(folder / name, mmap_mode="r") for name in (_IDS, _LOGS, _REST))

    def of(self, batch: Batch, learnt: Tensor) -> Opinion:
        """Returns what the teacher thought of its most probable tokens, and of all others together."""
        found = np.searchsorted(self._places, places_of(self._starts, batch, learnt))
        rows = self._order[found]
        ids, logs, rest = (torch.from_numpy(np.asarray(part[rows])) for part in (self._ids, self._logs, self._rest))
        device = batch.ids.device
        return _Written(ids.long().to(device), logs.float().to(device), rest.to(device))


class _Written(NamedTuple):
    """ids int64 [R k], logs float32 [R k], rest float32 [R]: the logarithm of what the others have together."""

    ids: Tensor
    logs: Tensor
    rest: Tensor

    def divergence(self, rows: slice, student: Tensor) -> Tensor:
        ids, teacher, rest = self.ids[rows], self.logs[rows], self.rest[rows]
        among = (teacher.exp() * (teacher - student.gather(1, ids))).sum(-1)  # C
        others = student.scatter(1, ids, -torch.inf).logsumexp(-1)  # C
        has_others = rest > -torch.inf  # not where k is the whole vocabulary
        apart = torch.where(has_others, rest, 0.0) - torch.where(has_others, others, 0.0)
        return among + torch.where(has_others, rest.exp() * apart, 0.0)


def log_probs(model: Llama, states: Tensor, temperature: float) -> Tensor:
    """Returns a model's log-probabilities of all tokens at a temperature, float32 [C V]."""
    return (model.logits(states) / temperature).log_softmax(-1)


def places_of(starts: NDArray[np.int64], batch: Batch, learnt: Tensor) -> NDArray[np.int64]:
    """Returns which token of the store each learnt place of a batch is, int64 [R]. starts: of the packer's pieces."""
    flat = learnt.cpu().numpy()
    rows, documents = flat // batch.ids.shape[1], batch.documents.flatten()[learnt].cpu().numpy()
    pieces = np.asarray([batch.pieces[b][d] for b, d in zip(rows, documents, strict=True)], dtype=np.int64)
    return starts[pieces] + batch.positions.flatten()[learnt].cpu().numpy()  # type: ignore[no-any-return]


def remembered(bench: Workbench, feed: PackedFeed, home: Path) -> Kept:
    """Returns what the teacher in folder `home` thinks of the recipe's conversations; asked once, then read from the
    run's folder. Raises WeightsError where that is damaged."""
    options, folder = bench.recipe.distill, bench.run / TAUGHT
    of = {
        "data": feed.digest,
        "teacher": fingerprint(home),
        "quantize": options.quantize,
        "dtype": bench.recipe.compute.dtype,
        "top_k": options.top_k,
        "temperature": options.temperature,
    }
    if not _is_of(folder, of):
        write_down(_load(home, bench), feed.packer, options, folder, bench.recipe.loss.chunk, bench.device, bench.say)
        facts = of | {"hash": _hash(folder)}
        write_whole(folder / _FACTS, json.dumps(facts, indent=1) + "\n")
    return Kept(folder, feed.packer)


@torch.no_grad()
def write_down(
    model: Llama,
    packer: Packer,
    options: DistillRecipe,
    folder: Path,
    chunk: int,
    device: torch.device | str,
    say: Progress,
) -> None:
    """Writes what a teacher thinks of each learnt token of a packer's documents: of the `top_k` most probable ones
    number and log-probability, 6 bytes, and the logarithm of what all others have together."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    n, k = _n_learnt(packer), min(options.top_k, model.config.text.vocab_size)
    make = np.lib.format.open_memmap
    places: NDArray[Any] = make(folder / _PLACES, "w+", np.int64, (n,))
    ids: NDArray[Any] = make(folder / _IDS, "w+", np.int32, (n, k))
    logs: NDArray[Any] = make(folder / _LOGS, "w+", np.float16, (n, k))
    rest: NDArray[Any] = make(folder / _REST, "w+", np.float32, (n,))
    at = 0
    for number, whole in enumerate(packer.once()):
        batch = whole.to(device)
        learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
        states = forward.hidden(model, batch).states[learnt]  # R D
        places[at : at + len(learnt)] = places_of(packer.pieces.start, batch, learnt)
        for first in range(0, len(learnt), chunk):
            known = log_probs(model, states[first : first + chunk], options.temperature)  # C V
            best = known.topk(k, dim=-1)
            others = known.scatter(1, best.indices, -torch.inf).logsumexp(-1)  # C
            rows = slice(at, at + len(known))
            ids[rows], logs[rows], rest[rows] = best.indices.cpu(), best.values.half().cpu(), others.cpu()
            at = rows.stop
        say(f"teacher: batch {number + 1}, {at} of {n} tokens")
    assert at == n, "every learnt token is in one batch"
    for written in (places, ids, logs, rest):
        written.flush()  # type: ignore[attr-defined]


def check_alike(home: Path, bench: Workbench) -> None:
    """Raises ConfigError where the teacher in folder `home` does not read what the student reads."""
    teacher, student = open_config(home), bench.config
    name, wish = bench.recipe.distill.teacher, "choose a teacher of the student's family"
    theirs, ours = teacher.text.vocab_size, student.text.vocab_size
    if theirs != ours:
        raise ConfigError(f"distill.teacher: {name} knows {theirs} tokens and the student {ours}; {wish}")
    vocabularies = Tokenizer.load(home), bench.tokenizer
    if any(_text(vocabularies[0], i) != _text(vocabularies[1], i) for i in range(ours)):
        raise ConfigError(f"distill.teacher: {name} has another vocabulary than the student; {wish}")
    if bench.recipe.batch.tiles and _tiles(teacher) != _tiles(student):
        raise ConfigError(
            f"distill.teacher: {name} cuts pictures into other tiles than the student; {wish}, or set batch.tiles to 0"
        )


def _text(tokenizer: Tokenizer, token: int) -> bytes | None:
    return tokenizer.decode_bytes([token]) if token < tokenizer.vocab_size else None


def _tiles(config: LlamaConfig) -> tuple[int, int] | None:
    return None if config.vision is None else (config.vision.tile_size, config.vision.tokens_per_tile)


def _load(home: Path, bench: Workbench) -> Llama:
    """The teacher, which does not train."""
    dtype, to = getattr(torch, bench.recipe.compute.dtype), bench.recipe.distill.quantize
    place = swap.placer(swap.Policy(to=to), dtype) if to else None  # type: ignore[arg-type]
    bench.say(f"reads {home}")
    return load(home, dtype=dtype, device=bench.device, place=place).requires_grad_(False)


def _n_learnt(packer: Packer) -> int:
    """How many tokens of a packer's documents are learnt: the first of a piece never is."""
    spans = zip(packer.pieces.start.tolist(), packer.pieces.length.tolist(), strict=True)
    return sum(int(np.count_nonzero(packer.store.weights[start + 1 : start + length])) for start, length in spans)


def _is_of(folder: Path, of: dict[str, Any]) -> bool:
    if not (folder / _FACTS).is_file():
        return False
    try:
        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        told = facts.pop("hash")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{folder / _FACTS}: is damaged ({error}); remove the folder") from error
    if facts != of:
        return False
    if told != _hash(folder):
        raise WeightsError(f"{folder}: is damaged (its files have another hash); remove it")
    return True


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (_PLACES, _IDS, _LOGS, _REST):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
