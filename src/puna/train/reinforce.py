"""Online reinforcement by groups: what was better than the other replies to the same task becomes more probable.

In: a workbench whose lines are tasks (`rollout`). Out: the exercise. A round draws some tasks and several replies to
each with the weights as they are, judges them, and makes `updates` batches of them: a batch is never older than that.
What a reply gained over its group's mean is its advantage; groups in which all replies are worth the same teach
nothing, and more tasks are drawn in their place. Every round is a file of the run, `rollouts/`, so that a run that was
killed goes on with the same replies, and so that one can read what the model said. Of several ranks, each with the
whole model, every one draws and judges its share of a round's tasks; what is learnt is the sum of all.

    token     mean over replies of mean over tokens of -min(r A, clip(r, 1 - low, 1 + high) A)      GRPO
    sequence  the same with one ratio a reply, the geometric mean of its tokens'                     GSPO

r is the ratio of a token's probability to what it was when the round was drawn. In training every token goes to the
experts that it went to in the engine (routing replay), scores are computed again. The ratio's denominator is this
trainer's own reading of the round, so that the first batch of a round has ratios of exactly 1; how far the engine's
numbers are from it weighs each token, at most by `truncate`, and is told as `mismatch`. `kl` adds the divergence from
the base. Source: GRPO, arXiv 2402.03300 section 4.1; GSPO, arXiv 2507.18071 section 4; dropped groups and two clips,
DAPO, arXiv 2503.14476; routing replay, arXiv 2510.11370; the estimate of the divergence, k3 of
http://joschu.net/blog/kl-approx.html.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.moe import MoE
from puna.model.transformer import Llama
from puna.prompt.render import ToolStyle
from puna.records import write_whole
from puna.train import forward
from puna.train.next_token import Loss, RouterLosses
from puna.train.objective import Exercise
from puna.train.pack import PADDING, Batch, DataState
from puna.train.recipe import LossRecipe
from puna.train.rollout import Sample, Task, Wish, read_tasks, roll
from puna.train.tune_recipe import ReinforceRecipe
from puna.train.workbench import Workbench
from puna.weights.checkpoint import load

ROUNDS, REWARDS = "rollouts", "rewards.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch(Batch):
    """Replies in rows. Weights are how often a reply was drawn over its length.

    told       float32 [4 B S], of each target: log-probability in the engine, in this trainer when the round was drawn,
               in the base, and the advantage of its reply
    samples    int64 [B S]: whose token it is, counted within the batch
    routes     int64 [M T k]: the experts that each token goes to, -1 where it may choose
    shown      int64 [n]: which tile each place for one shows; the replies to a task show the same ones
    reward     the mean over all replies of the round, float32 scalar
    """

    told: Tensor
    samples: Tensor
    routes: Tensor
    shown: Tensor
    reward: Tensor


def begin(bench: Workbench) -> Exercise:
    """Returns the loss of groups over rounds of the recipe's tasks.

    Raises ConfigError for a recipe that it cannot follow, PromptError for a line that it cannot read.
    """
    recipe, options = bench.recipe, bench.recipe.reinforce
    readers = recipe.parallel.replicate
    if recipe.batch.accumulate != readers:
        raise ConfigError(
            f"batch.accumulate: {recipe.batch.accumulate} must be {readers}, a batch a rank; raise reinforce.prompts "
            "instead"
        )
    if options.prompts % readers:
        raise ConfigError(f"reinforce.prompts: {options.prompts} do not divide by {readers} ranks; give a multiple")
    style: ToolStyle = "json" if recipe.data.tool_style == "json" else "pythonic"
    tasks = list(read_tasks(recipe.data.chats, bench.renderer, style, bench.judges))
    fitting = [task for task in tasks if len(task.prompt.ids) + options.max_new_tokens <= recipe.batch.row_len]
    fitting = passed(fitting, recipe.data.passes)
    if not fitting:
        raise ConfigError(
            f"batch.row_len: {recipe.batch.row_len} holds none of {len(tasks)} tasks with {options.max_new_tokens} new "
            "tokens, or data.passes leaves none; raise it"
        )
    (bench.run / "data.json").write_text(json.dumps({"tasks": len(tasks), "used": len(fitting)}) + "\n", "utf-8")
    loss = Grouped(bench.model, options, recipe.loss, recompute=recipe.parallel.recompute)
    if not recipe.data.held_out:
        return Exercise(loss, Rounds(bench, fitting))
    held_out = list(read_tasks((recipe.data.held_out,), bench.renderer, style, bench.judges))
    feed = Rounds(bench, fitting, held_out)
    feed.measure("before", 0)
    return Exercise(loss, feed, lambda: feed.measure("after", recipe.schedule.steps))


class Grouped:
    """An `Objective` over `RolloutBatch`es."""

    def __init__(self, model: Llama, options: ReinforceRecipe, router: LossRecipe, *, recompute: bool = False) -> None:
        self.model, self.options, self.router, self.recompute = model, options, router, recompute

    def total(self, batch: Batch) -> Tensor:
        """Returns the number of replies."""
        return batch.weights.sum()

    def tensors(self) -> dict[str, Tensor]:
        """Returns nothing: what is remembered lies in the rounds' files."""
        return {}

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        assert isinstance(batch, RolloutBatch), "made by Rounds"
        options = self.options
        read = reading(self.model, batch, self.router.chunk, recompute=self.recompute)
        weights = batch.weights.flatten()[read.learnt]  # R
        engine, old, base, advantages = batch.told.flatten(1)[:, read.learnt]  # R
        if options.updates == 1 and not options.kl:
            old = base = read.log_probs.detach()  # of a round that is learnt from once, this reading is the first
        moved = read.log_probs - old  # R
        if options.level == "sequence":
            owners = batch.samples.flatten()[read.learnt]  # R
            of_samples = moved.new_zeros(int(batch.samples.max()) + 1)
            sums, times = (of_samples.index_add(0, owners, each) for each in (moved * weights, weights))
            moved = (sums / times)[owners]
        ratios = moved.exp()  # R
        held = ratios.clamp(1 - options.clip_low, 1 + options.clip_high)
        trust = (old - engine).exp().clamp(max=options.truncate)
        gains = torch.minimum(ratios * advantages, held * advantages) * trust
        apart = base - read.log_probs
        divergence = apart.exp() - apart - 1
        nats = (options.kl * divergence - gains) @ weights
        routed = self.router.balance * read.router.balance + self.router.z * read.router.z
        n = weights.sum()
        metrics = {
            "reward": batch.reward * n,
            "clipped": (ratios * advantages > held * advantages).float() @ weights,
            "mismatch": (old - engine).abs() @ weights,
            "divergence": divergence @ weights,
        }
        return Loss(
            total=nats / total_weight.clamp(min=1e-9) + routed * share,
            nll=nats.detach() / n.clamp(min=1e-9),
            balance=read.router.balance.detach(),
            weight=n,
            load=read.router.load.detach(),
            metrics={name: value.detach() for name, value in metrics.items()},
        )


class Reading(NamedTuple):
    """learnt int64 [R]: places of the learnt targets in the flat batch; log_probs float32 [R]: theirs."""

    learnt: Tensor
    log_probs: Tensor
    router: RouterLosses


def reading(model: Llama, batch: RolloutBatch, chunk: int, *, recompute: bool = False) -> Reading:
    """Returns what a model gives a batch's targets, each token going where it went in the engine."""
    again = partial(replayed, model, batch.routes)
    with again():
        states, routes = forward.hidden(model, batch, recompute=recompute, shown=batch.shown, again=again)
    learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
    known = forward.log_probs(model, states[learnt], batch.targets.flatten()[learnt], chunk)
    return Reading(learnt, known, forward.router_losses(routes, batch))


@contextmanager
def replayed(model: Llama, routes: Tensor) -> Iterator[None]:
    """Within it the tokens of a batch go to these experts, int64 [M T k]; -1 leaves a token its choice."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    for moe, forced in zip(layers, routes, strict=True):
        moe.forced = forced
    try:
        yield
    finally:
        for moe in layers:
            moe.forced = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A reply that is learnt from: sample, advantage, how often it was drawn.

    old, base  log-probabilities of its tokens in this trainer and in the base; empty where the loss reads them first
    """

    sample: Sample
    advantage: float
    times: int = 1
    old: tuple[float, ...] = ()
    base: tuple[float, ...] = ()


class Round(NamedTuple):
    """What one round drew: the parts of it that become batches, the mean reward of all, and the task that follows."""

    parts: list[list[Drawn]]
    reward: float
    following: int


class Rounds:
    """A `Feed`, and its reader: batches of replies drawn with the weights as they are. `held_out` are tasks to look at
    on the way, from which nothing is learnt."""

    def __init__(self, bench: Workbench, tasks: Sequence[Task], held_out: Sequence[Task] = ()) -> None:
        self.bench, self.tasks, self.held_out = bench, tasks, held_out
        self.options = bench.recipe.reinforce
        of = hashlib.sha256(bench.fingerprint.encode())
        for task in tasks:
            of.update(repr((task.id, task.prompt.ids, task.answer)).encode())
        self.digest = of.hexdigest()
        self._round: tuple[int, Round] | None = None
        self._state = DataState()
        self._reader, self._readers = 0, 1
        self._base = _base(bench) if self.options.kl else None

    @contextmanager
    def opened(self, state: DataState, reader: int, readers: int) -> Iterator["Rounds"]:
        """Returns the batches behind `state`, of rank `reader` of so many."""
        self._state, self._reader, self._readers = state, reader, readers
        yield self

    def next(self) -> tuple[Batch, DataState]:
        """Returns the next batch, for which a round is drawn if its turn has come, and the state behind it."""
        number, part = divmod(self._state.sample, self.options.updates)
        following = self._state.waiting[0] if self._state.waiting else 0
        if self._round is None or self._round[0] != number:
            every = self.options.look_every
            if every and self.held_out and number and number % every == 0 and part == 0 and self._reader == 0:
                self.measure("between", number * self.options.updates)
            drawn = self._draw(number, following) if part == 0 else self._read(number)
            self._round = number, drawn
        drawn = self._round[1]
        last = part == self.options.updates - 1
        waiting = drawn.following if last else following
        self._state = DataState(waiting // len(self.tasks), self._state.sample + 1, (waiting,))
        return self._batch(drawn.parts[part], drawn.reward), self._state

    def names(self, batch: Batch) -> list[str]:
        """Returns the ids of the tasks in a batch, each once."""
        return list(dict.fromkeys(self.tasks[task].id for row in batch.pieces for task in row))

    def measure(self, when: str, step: int) -> None:
        """Writes down what the model's most probable replies to the held-out tasks are worth, by source. What was
        measured "before" stays."""
        tasks = self.held_out
        file = self.bench.run / REWARDS
        known = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
        if when == "before" and any(each["when"] == when for each in known):
            return
        wish = Wish(1, self.options.max_new_tokens, 0, temperature=0.0)
        samples = self._replies(dict(enumerate(tasks)), wish, step)
        by_source: dict[str, list[float]] = {}
        for sample in samples:
            by_source.setdefault(tasks[sample.task].source, []).append(sample.reward)
        line = {
            "when": when,
            "step": step,
            "reward": float(np.mean([sample.reward for sample in samples])),
            "tasks": len(samples),
            "sources": {name: {"reward": float(np.mean(all_)), "tasks": len(all_)} for name, all_ in by_source.items()},
        }
        kept = [each for each in known if (each["when"], each.get("step")) != (when, step)]
        write_whole(file, "".join(json.dumps(each) + "\n" for each in (*kept, line)), lasting=True)
        self.bench.say(f"held out, step {step}: reward {line['reward']:.3f} of {len(samples)} tasks")

    def _draw(self, number: int, first: int) -> Round:
        """Draws until enough groups teach something, at most `tries` times, and writes the round down.

        Of several ranks each takes every so-many-th task behind `first`, and its share of the groups.
        """
        options, chosen, rewards, ended = self.options, list[Drawn](), list[float](), 0
        following, n_groups, share = first, 0, options.prompts // self._readers
        for _ in range(options.tries):
            wanted = (share - n_groups) * self._readers
            numbers = [
                self._task(place + self._reader) for place in range(following, following + wanted, self._readers)
            ]
            following += wanted
            wish = Wish(options.samples, options.max_new_tokens, self.bench.recipe.data.seed * 65_537 + number)
            asked = {task: self.tasks[task] for task in dict.fromkeys(numbers)}
            samples = self._replies(asked, wish, number * options.updates)
            for at in range(0, len(samples), options.samples):
                group = samples[at : at + options.samples]
                rewards += [sample.reward for sample in group]
                ended += sum(sample.ids[-1] in self.bench.tokenizer.stop_ids for sample in group)
                advantages = gained([sample.reward for sample in group], normalise=options.normalise)
                if any(advantages):
                    n_groups += 1
                    chosen += merged(Drawn(sample, gain) for sample, gain in zip(group, advantages, strict=True))
            if n_groups >= share:
                break
        following, reward = self._agreed(following, rewards)
        order = np.random.Generator(np.random.Philox(key=[self.bench.recipe.data.seed, number])).permutation(
            len(chosen)
        )
        parts = [[chosen[i] for i in part] for part in np.array_split(order, options.updates)]
        if options.updates > 1 or self._base is not None:
            parts = [self._known(part) for part in parts]
        drawn = Round(parts, reward, following)
        self._write(number, drawn)
        self.bench.say(
            f"round {number}: reward {drawn.reward:.3f} of {len(rewards)} replies, {ended / len(rewards):.0%} ended, "
            f"{n_groups} groups teach"
        )
        return drawn

    def _replies(self, asked: Mapping[int, Task], wish: Wish, step: int) -> list[Sample]:
        """Returns what the model replies after so many steps. Raises WeightsError where they have ruined it."""
        try:
            return roll(self.bench.model, asked, self.bench.tokenizer, wish, self.bench.judges)
        except WeightsError as error:
            reason = str(error).partition(":")[0]
            raise WeightsError(
                f"the model of step {step} cannot reply ({reason}): lower optimizer.lr and begin anew"
            ) from error

    def _agreed(self, following: int, rewards: Sequence[float]) -> tuple[int, float]:
        """Returns the task that follows on all ranks, that of the rank which drew the most, and their mean reward."""
        if self._readers == 1:
            return following, float(np.mean(rewards))
        furthest = torch.tensor(following, device=self.bench.device)
        sums = torch.tensor([sum(rewards), len(rewards)], device=self.bench.device)
        distributed.all_reduce(furthest, distributed.ReduceOp.MAX)
        distributed.all_reduce(sums)
        return int(furthest), float(sums[0] / sums[1])

    def _task(self, place: int) -> int:
        epoch, index = divmod(place, len(self.tasks))
        seed = np.random.SeedSequence((self.bench.recipe.data.seed, epoch))
        return int(np.random.Generator(np.random.Philox(seed)).permutation(len(self.tasks))[index])

    @torch.no_grad()
    def _known(self, part: list[Drawn]) -> list[Drawn]:
        """The same replies with what this trainer and the base give them now."""
        if not part:
            return part
        batch, chunk = self._batch(part, 0.0), self.bench.recipe.loss.chunk
        old = self._by_sample(batch, reading(self.bench.model, batch, chunk), len(part))
        base = old if self._base is None else self._by_sample(batch, reading(self._base, batch, chunk), len(part))
        return [replace(each, old=old[i], base=base[i]) for i, each in enumerate(part)]

    def _by_sample(self, batch: RolloutBatch, read: Reading, n: int) -> list[tuple[float, ...]]:
        owners = batch.samples.flatten()[read.learnt].tolist()
        values: list[list[float]] = [[] for _ in range(n)]
        for owner, value in zip(owners, read.log_probs.tolist(), strict=True):
            values[owner].append(value)
        return [tuple(each) for each in values]

    def _batch(self, part: Sequence[Drawn], reward: float) -> RolloutBatch:
        """Replies behind their tasks, in as many rows as they take; one padded row where there are none."""
        recipe, config = self.bench.recipe, self.bench.config
        width, text = recipe.batch.row_len, config.text
        rows = _rows([len(self.tasks[d.sample.task].prompt.ids) + len(d.sample.ids) for d in part], width)
        shape = (max(len(rows), 1), width)
        ids = np.full(shape, config.pad_id, dtype=np.int64)
        targets, positions, documents = ids.copy(), np.zeros_like(ids), np.full_like(ids, PADDING)
        samples = np.full_like(ids, -1)
        weights, told = np.zeros(shape, dtype=np.float32), np.zeros((4, *shape), dtype=np.float32)
        routes = np.full((len(text.moe_layers), *shape, max(text.n_active_experts, 1)), -1, dtype=np.int64)
        numbers = []
        for b, row in enumerate(rows):
            at = 0
            for d, i in enumerate(row):
                drawn = part[i]
                prompt, sample = self.tasks[drawn.sample.task].prompt, drawn.sample
                whole = [*prompt.ids, *sample.ids]
                stop, first = at + len(whole), at + len(prompt.ids) - 1
                answered = slice(first, stop - 1)  # from where the reply's tokens were chosen
                ids[b, at:stop], positions[b, at:stop], documents[b, at:stop] = whole, np.arange(len(whole)), d
                targets[b, at : stop - 1] = whole[1:]
                weights[b, answered], samples[b, answered] = drawn.times / len(sample.ids), i
                told[0, b, answered], told[3, b, answered] = sample.logprobs, drawn.advantage
                if drawn.old:
                    told[1, b, answered], told[2, b, answered] = drawn.old, drawn.base
                if routes.shape[0]:
                    routes[:, b, answered] = np.asarray(sample.routes).transpose(1, 0, 2)
                at = stop
            numbers.append(tuple(part[i].sample.task for i in row))
            positions[b, at:] = np.arange(width - at)
        tiles, shown = self._pictures([task for row in numbers for task in row])
        batch = RolloutBatch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            documents=torch.from_numpy(documents),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            tiles=tiles,
            n_tiles=len(tiles),
            pieces=tuple(numbers),
            told=torch.from_numpy(told),
            samples=torch.from_numpy(samples),
            routes=torch.from_numpy(routes).flatten(1, 2),
            shown=shown,
            reward=torch.tensor(reward),
        )
        moved = batch.to(self.bench.device)
        assert isinstance(moved, RolloutBatch), "as it was"
        return moved

    def _pictures(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the tiles of tasks, uint8 [I 3 S S], each task's once, and which of them every place shows, int64."""
        places, tiles, shown = dict[int, int](), list[Tensor](), list[int]()
        for task in tasks:
            own = self.tasks[task].prompt.tiles
            if own is not None:
                if task not in places:
                    places[task] = sum(map(len, tiles))
                    tiles.append(own.mul(0.5).add(0.5).mul(255).round().byte())
                shown += range(places[task], places[task] + len(own))
        return torch.cat(tiles) if tiles else _no_tiles(self.bench.config), torch.tensor(shown, dtype=torch.int64)

    def _file(self, number: int) -> Path:
        own = "" if self._readers == 1 else f"-{self._reader}of{self._readers}"
        return self.bench.run / ROUNDS / f"{number:06d}{own}.json"

    def _write(self, number: int, drawn: Round) -> None:
        file = self._file(number)
        file.parent.mkdir(exist_ok=True, parents=True)
        document = {
            "reward": drawn.reward,
            "following": drawn.following,
            "parts": [
                [asdict(each) | {"id": self.tasks[each.sample.task].id} for each in part] for part in drawn.parts
            ],
        }
        write_whole(file, json.dumps(document), lasting=True)  # a checkpoint may count on it

    def _read(self, number: int) -> Round:
        file = self._file(number)
        try:
            document = json.loads(file.read_text("utf-8"))
            parts = [[_drawn(each) for each in part] for part in document["parts"]]
            return Round(parts, document["reward"], document["following"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{file}: cannot be read ({error}); its round is half learnt: go on from an older checkpoint"
            ) from error


def gained(rewards: Sequence[float], *, normalise: bool) -> list[float]:
    """Returns by how much each reward of a group is above their mean, over their standard deviation if so wished."""
    values = np.asarray(rewards, dtype=np.float64)
    above = values - values.mean()
    if normalise and above.any():
        above /= values.std()
    return [float(gain) for gain in above]


def merged(group: Iterable[Drawn]) -> list[Drawn]:
    """Returns the replies of a group with those that are word for word the same as one, which counts as often: equal
    replies are worth the same, and are read once."""
    found: dict[tuple[int, ...], Drawn] = {}
    for each in group:
        known = found.get(each.sample.ids)
        found[each.sample.ids] = each if known is None else replace(known, times=known.times + each.times)
    return list(found.values())


def passed(tasks: Sequence[Task], passes: Mapping[str, float]) -> list[Task]:
    """Returns tasks as often as their source is passed in an epoch, of a broken number the first ones once more."""
    found: list[Task] = []
    for source in dict.fromkeys(task.source for task in tasks):
        own, times = [task for task in tasks if task.source == source], passes.get(source, 1.0)
        found += own * int(times) + own[: round((times - int(times)) * len(own))]
    return found


def _rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Puts each into the first row that has room for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i, length in enumerate(lengths):
        row = next((b for b, room in enumerate(left) if length <= room), None)
        if row is None:
            rows.append([])
            left.append(width)
            row = len(rows) - 1
        rows[row].append(i)
        left[row] -= length
    return rows


def _drawn(document: dict[str, Any]) -> Drawn:
    sample = document["sample"]
    routes = tuple(tuple(tuple(experts) for experts in token) for token in sample["routes"])
    ids, logprobs = tuple(sample["ids"]), tuple(sample["logprobs"])
    whole = Sample(sample["task"], ids, logprobs, routes, sample["reward"], sample["text"])
    return Drawn(whole, document["advantage"], document["times"], tuple(document["old"]), tuple(document["base"]))


def _base(bench: Workbench) -> Llama:
    """The base beside the model that trains."""
    dtype = getattr(torch, bench.recipe.compute.dtype)
    return load(bench.base, dtype=dtype, device=bench.device).requires_grad_(False)


def _no_tiles(config: LlamaConfig) -> Tensor:
    side = 1 if config.vision is None else config.vision.tile_size
    return torch.zeros(0, 3, side, side, dtype=torch.uint8)
