"""Tuning: a base, conversations and an aim, over the loop, the checkpoints and the meter of pre-training.

In: a recipe and the folder of a run. Out: in that folder what a training leaves (`loop`), and besides `data.json`, what
was read and dropped, `drift.jsonl`, how far routing moved, and at the end `model/` in Hugging Face's layout, with an
adapter in it if the base is not in small numbers, and `adapter/` in PEFT's. Killed at any moment and started again, the
run ends with the same bits.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path

import torch

from puna.adapters import attach, merge
from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.records import write_whole
from puna.train import difficulty
from puna.train.account import account, sources_of
from puna.train.balance import Balance
from puna.train.drift import Drift, Routing
from puna.train.loop import Outcome, Steps, emptied, room, settle
from puna.train.objective import Exercise, Feed
from puna.train.optim import Optimizer, cast
from puna.train.pack import DataState, PackedFeed
from puna.train.rewards import Judge
from puna.train.state import TrainingState, first_state, trained
from puna.train.store import Progress
from puna.train.team import Team
from puna.train.tune_recipe import TuneRecipe
from puna.train.update import ManyRanks, OneProcess, Replicas, Update, on_ranks
from puna.train.watch.work import write_work
from puna.train.workbench import RowsOnHost, Workbench, add_factors, freeze, open_bench
from puna.weights import peft
from puna.weights.checkpoint import COMPANIONS, save_hf

HELD_OUT = "held_out.json"

_MODULES: Mapping[str, str] = {
    "supervised": "puna.train.supervised",
    "preference": "puna.train.preference",
    "reinforce": "puna.train.reinforce",
    "distill": "puna.train.distill",
}


def tune(recipe: TuneRecipe, run: str | Path, progress: Progress, judges: Mapping[str, Judge] | None = None) -> Outcome:
    """Tunes until the last step, or until SIGTERM or SIGINT asks for a pause, and goes on where `run` has a checkpoint.

    `judges`: further kinds of answers that `rewards` can check. As `loop.train`, whose errors it raises, and those of
    `Workbench` and of the recipe's kind of exercise.
    """
    settle(recipe)
    run = Path(run)
    bench = open_bench(recipe, run, progress)
    bench.judges = judges or {}
    team = Team.of(recipe, bench.config)
    if not team.is_first:
        bench.say = _silent
    with room(run), team.alone_in(run):
        return (_divided if recipe.parallel.world > recipe.parallel.replicate else _entire)(bench, team)


def _entire(bench: Workbench, team: Team) -> Outcome:
    """Tuning by processes of which each has the entire model."""
    recipe, run = bench.recipe, bench.run
    with team.ends_together(run):
        state = _begun(bench)
        with team.first_alone():  # makes what the others then find
            exercise = _exercise(bench)
        state.others = exercise.objective.tensors()
        if team.is_first:
            trains = {name: each.numel() for name, each in state.optimizer.parameters.items()}
            write_work(run, recipe, bench.config, trains)
        routing = _routing(bench, exercise.feed) if team.is_first else None
        before = _held_out(bench, "before") if team.is_first else None
        kind = OneProcess if team.mesh is None else Replicas
        update = kind(exercise.objective, state.optimizer, bench.device)
        watch = None if routing is None else _watch(routing, recipe.drift.every_steps, bench.say)
        steps = Steps(recipe, state, update, exercise.feed, run, team, bench.say, recipe.objective.kind, watch)
    is_done = steps.run()
    if team.is_first:
        _account(bench, exercise.feed)
    if is_done and team.is_first:
        exercise.at_end()
        if routing is not None:
            bench.say(_line(routing.note(state.step)))
        if before is not None:
            _held_out(bench, "after")
        _finish(bench)
    return Outcome(state.step, finished=is_done)


def _exercise(bench: Workbench) -> Exercise:
    begin: Callable[[Workbench], Exercise] = import_module(_MODULES[bench.recipe.objective.kind]).begin
    return begin(bench)


def _begun(bench: Workbench) -> TrainingState:
    """Returns the state before the first step; the model is then as it trains."""
    recipe, model = bench.recipe, bench.model
    if recipe.lora is not None:
        add_factors(bench)
        parameters = attach.trained(model)
    else:
        freeze(bench)
        parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = Optimizer(parameters.items(), recipe.optimizer)
    if recipe.lora is None:
        cast(model, getattr(torch, recipe.compute.dtype))
    balance = Balance(model, (), recipe.schedule, 0.0)
    return TrainingState(
        step=0, model=model, optimizer=optimizer, balance=balance, data=DataState(), seconds=0.0, tokens=0
    )


def _divided(bench: Workbench, team: Team) -> Outcome:
    """Supervised tuning of all weights, divided as pre-training is. Routing and held-out texts are not measured."""
    recipe, run = bench.recipe, bench.run
    assert team.mesh is not None, "several ranks"
    if recipe.drift.batches or recipe.filter.asks_base or recipe.data.held_out:
        raise ConfigError(
            "parallel: on several ranks nothing is asked of the base: set drift.batches to 0, and leave out "
            "filter.easy_accuracy, filter.easy_nats and data.held_out"
        )
    with team.ends_together(run):
        with team.first_alone():
            feed = bench.feed()
        if team.is_first:
            write_work(run, recipe, bench.config)
        device = torch.device(recipe.compute.device)
        stage, optimizer = on_ranks(bench.model.to(device), team.mesh, recipe)
        state = first_state(recipe, stage, optimizer)
        update: Update = ManyRanks(stage, optimizer, recipe, device)
        steps = Steps(recipe, state, update, feed, run, team, bench.say, recipe.objective.kind)
    is_done = steps.run()
    if team.is_first:
        _account(bench, feed)
        if is_done:
            bench.model = trained(run, bench.config, getattr(torch, recipe.compute.dtype))
            _finish(bench)
    return Outcome(state.step, finished=is_done)


def _routing(bench: Workbench, feed: Feed) -> Routing | None:
    """Returns what compares routes with those of the start weights, where there are routes and batches to compare."""
    n = bench.recipe.drift.batches
    if not n or not bench.config.text.moe_layers or not isinstance(feed, PackedFeed):
        return None
    return Routing(bench.model, list(islice(feed.packer.once(), n)), bench.run, bench.device)


def _watch(routing: Routing, every: int, say: Progress) -> Callable[[int], None]:
    def note(step: int) -> None:
        if every and step % every == 0:
            say(_line(routing.note(step)))

    return note


def _line(drift: Drift) -> str:
    return f"routing at step {drift.step}: {drift.agreement:.1%} as the base, evenness of loads {drift.entropy:.3f}"


def _held_out(bench: Workbench, when: str) -> dict[str, dict[str, float]] | None:
    """Measures held-out conversations, if there are any, and writes it down. What was measured "before" stays."""
    if not bench.recipe.data.held_out or bench.recipe.objective.kind == "reinforce":  # which measures rewards
        return None
    file = bench.run / HELD_OUT
    known: dict[str, dict[str, dict[str, float]]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if when == "before" and when in known:
        return known[when]
    store = bench.stored((bench.recipe.data.held_out,))
    known[when] = difficulty.by_source(bench.scores(store), store)
    write_whole(file, json.dumps(known, indent=1) + "\n", lasting=True)
    nats, accuracy = known[when]["all"]["nats_per_token"], known[when]["all"]["accuracy"]
    bench.say(f"held out {when}: {nats:.3f} nats a learnt token, {accuracy:.1%} of them guessed")
    return known[when]


def _account(bench: Workbench, feed: Feed) -> None:
    store = feed.packer.store if isinstance(feed, PackedFeed) else None
    account(bench.run, bench.recipe, {} if store is None else sources_of(store, bench.recipe.data.passes))


def _finish(bench: Workbench) -> None:
    """Writes the adapter if there is one, and the whole model unless its base is in small numbers."""
    recipe, model = bench.recipe, bench.model
    if recipe.lora is not None:
        adapter = attach.detach(model)
        _written(bench, "adapter", lambda folder: peft.save(adapter, bench.config, folder, base=recipe.model.base))
        if recipe.model.quantize:
            bench.say(
                f"the base is in {recipe.model.quantize}: serve it with the adapter, or merge the checkpoint that it "
                f"was made from: puna convert {recipe.model.base} MERGED --to hf --adapter {bench.run / 'adapter'}"
            )
            return
        _whole(model)
        merge.merge(model, adapter)
    _written(bench, "model", lambda folder: _save(bench, model, folder))


def _save(bench: Workbench, model: Llama, folder: Path) -> None:
    save_hf(model, bench.config, folder)
    for name in COMPANIONS:
        if (bench.base / name).is_file():
            shutil.copyfile(bench.base / name, folder / name)


def _whole(model: Llama) -> None:
    """Gives a model whose embedding stayed with the host an ordinary one."""
    rows: torch.nn.Module = model.embedding
    if isinstance(rows, RowsOnHost):
        weight = rows.weight.to(model.norm.weight.device)
        model.embedding = torch.nn.Embedding(len(weight), weight.shape[1], _weight=weight)


def _written(bench: Workbench, name: str, write: Callable[[Path], None]) -> None:
    """Writes a folder of the run, in the place of one that a run left which was killed on its way."""
    folder = emptied(bench.run / name)
    write(folder)
    bench.say(f"{name} written to {folder}")


def _silent(line: str) -> None:
    """Only the first of several processes speaks."""
