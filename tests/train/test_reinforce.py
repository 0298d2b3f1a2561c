"""Replies that were better than their group's become more probable; rounds are drawn again as they were."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import ConfigError, PromptError, PunaError
from puna.model.transformer import Llama
from puna.prompt.render import Prompt
from puna.train.pack import DataState
from puna.train.reinforce import REWARDS, ROUNDS, Grouped, RolloutBatch, Rounds, begin, gained, merged, passed, reading
from puna.train.tune import tune
from puna.train.tune_recipe import TuneRecipe, from_dict
from puna.train.workbench import Workbench, open_bench
from puna.weights.checkpoint import load
from tests.reference.ranks import Ranks
from tests.train.chat_lines import TASKS, write_lines
from tests.train.runs import lines, logged, losses, pause_at, silent


def recipe_of(tiny: Path, folder: Path, **reinforce: Any) -> TuneRecipe:
    return from_dict(tables_of(tiny, folder, **reinforce))


def tables_of(tiny: Path, folder: Path, **reinforce: Any) -> dict[str, Any]:
    return {
        "model": {"base": str(tiny)},
        "data": {"chats": [str(write_lines(folder / "tasks.jsonl", TASKS))], "store": str(folder / "stores")},
        "batch": {"rows": 2, "row_len": 80, "tiles": 0, "window": 8},
        "objective": {"kind": "reinforce"},
        "reinforce": {"prompts": 3, "samples": 4, "max_new_tokens": 6, **reinforce},
        "optimizer": {"lr": 0.003, "weight_decay": 0.0, "momentum": 0.9, "clip_norm": 1.0}
        | {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
        "schedule": {"steps": 4, "warmup_steps": 1, "decay_steps": 1, "final_fraction": 0.1},
        "compute": {"dtype": "float32", "compile": False, "threads": 1},
        "loss": {"balance": 0.0, "chunk": 64},
    }


def length(reply: str, answer: object, tools: object) -> float:
    """Worth more the shorter it is: something that always differs within a group."""
    return 1 / (1 + len(reply))


JUDGES = {"format": length}


@pytest.fixture
def bench(tiny: Path, tmp_path: Path) -> Workbench:
    return open_bench(recipe_of(tiny, tmp_path, updates=2), tmp_path, silent)


def batches_of(bench: Workbench, n: int, state: DataState | None = None) -> list[tuple[RolloutBatch, DataState]]:
    bench.judges = JUDGES
    feed = begin(bench).feed
    with feed.opened(DataState() if state is None else state, 0, 1) as reader:
        drawn = [reader.next() for _ in range(n)]
    return [(batch, after) for batch, after in drawn if isinstance(batch, RolloutBatch)]


def test_the_trainer_reads_a_round_as_the_engine_drew_it(bench: Workbench) -> None:
    (batch, _), _ = batches_of(bench, 2)
    engine, old, base, _ = batch.told.flatten(1)[:, batch.weights.flatten() > 0]
    assert len(old) > 0
    # Two ways to compute attention, in float32.
    torch.testing.assert_close(engine, old, rtol=0, atol=2e-5)
    assert torch.equal(old, base)  # no divergence is asked for


def test_with_routes_replayed_the_first_batch_has_ratios_of_exactly_one(bench: Workbench) -> None:
    (batch, _), _ = batches_of(bench, 2)
    with torch.enable_grad():
        again = reading(bench.model, batch, 64)
    assert torch.equal(again.log_probs, batch.told[1].flatten()[again.learnt])
    loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss)
    found = loss(batch, loss.total(batch))
    assert found.metrics["clipped"].item() == 0
    gains = batch.told[3] * batch.weights * (batch.told[1] - batch.told[0]).exp()
    torch.testing.assert_close(found.total, -gains.sum() / batch.weights.sum(), rtol=1e-5, atol=1e-6)


def test_tokens_go_where_they_are_sent(bench: Workbench) -> None:
    (batch, _), _ = batches_of(bench, 2)
    elsewhere = torch.where(batch.routes < 0, batch.routes, (batch.routes + 1) % bench.config.text.n_experts)
    plain = reading(bench.model, batch, 64)
    sent = RolloutBatch(**{name: getattr(batch, name) for name in batch.__dataclass_fields__} | {"routes": elsewhere})
    moved = reading(bench.model, sent, 64)
    assert not torch.allclose(plain.log_probs, moved.log_probs, atol=1e-4)


def test_what_is_better_becomes_more_probable_by_both_ratios(tiny: Path, tmp_path: Path) -> None:
    for level in ("token", "sequence"):
        recipe = recipe_of(tiny, tmp_path, level=level, clip_low=9.0, clip_high=9.0, updates=2)
        bench = open_bench(recipe, tmp_path, silent)
        bench.model.requires_grad_(True)
        ((batch, _),) = batches_of(bench, 1)
        loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss)
        optimizer = torch.optim.SGD(bench.model.parameters(), lr=0.05)
        gains = []
        for _ in range(3):
            found = loss(batch, loss.total(batch))
            optimizer.zero_grad()
            found.total.backward()
            optimizer.step()
            gains.append(-found.total.item())
        assert gains[0] < gains[1] < gains[2], level


def test_a_round_is_drawn_again_as_it_was_and_read_where_it_is_half_learnt(bench: Workbench) -> None:
    drawn = batches_of(bench, 4)
    again = batches_of(bench, 2, drawn[1][1])
    assert torch.equal(again[0][0].ids, drawn[2][0].ids) and torch.equal(again[0][0].told, drawn[2][0].told)
    assert again[1][1] == drawn[3][1]
    with torch.no_grad():
        bench.model.norm.weight.mul_(1.5)  # half a round later the weights are others
    ((half, _),) = batches_of(bench, 1, drawn[2][1])
    assert torch.equal(half.told, drawn[3][0].told) and torch.equal(half.routes, drawn[3][0].routes)
    written = json.loads((bench.run / ROUNDS / "000000.json").read_text())
    assert {"id", "advantage", "times", "old", "base", "sample"} == set(written["parts"][0][0])


def test_a_round_that_is_learnt_from_once_needs_no_reading_before(bench: Workbench) -> None:
    (batch, _), _ = batches_of(bench, 2)
    bench.model.requires_grad_(True)

    def slope(updates: int) -> tuple[float, torch.Tensor]:
        loss = Grouped(bench.model, replace(bench.recipe.reinforce, updates=updates), bench.recipe.loss)
        bench.model.zero_grad()
        unread = replace(batch, told=torch.stack([batch.told[0], *torch.zeros_like(batch.told[1:3]), batch.told[3]]))
        found = loss(batch if updates > 1 else unread, loss.total(batch))
        torch.autograd.backward(found.total)
        assert bench.model.norm.weight.grad is not None
        return found.total.item(), bench.model.norm.weight.grad.clone()

    assert slope(2)[0] == slope(1)[0] and torch.equal(slope(2)[1], slope(1)[1])


def test_tasks_come_as_often_as_their_source_is_passed(bench: Workbench) -> None:
    feed = begin(bench).feed
    assert isinstance(feed, Rounds)
    found = [task.id for task in passed(feed.tasks, {"odd": 0.0, "even": 1.7})]
    assert found == ["task1", "task3", "task5", "task1", "task3"]
    assert sorted(task.id for task in passed(feed.tasks, {})) == [task["id"] for task in TASKS]


def test_equal_replies_are_read_once_and_count_as_often(bench: Workbench) -> None:
    feed = begin(bench).feed
    assert isinstance(feed, Rounds)
    bench.judges = JUDGES
    drawn = [each for part in feed._draw(0, 0).parts for each in part]
    one, other = drawn[0], next(each for each in drawn if each.sample.ids != drawn[0].sample.ids)
    loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss)
    apart, once = feed._batch([one, other, one, one], 0.0), feed._batch(merged([one, other, one, one]), 0.0)
    assert (once.weights > 0).sum() < (apart.weights > 0).sum() and loss.total(once) == loss.total(apart) == 4
    for level in ("token", "sequence"):
        loss.options = replace(loss.options, level=level)
        torch.testing.assert_close(loss(once, loss.total(once)).total, loss(apart, loss.total(apart)).total)


def test_replies_to_a_task_show_its_pictures_once(bench: Workbench) -> None:
    feed = begin(bench).feed
    assert isinstance(feed, Rounds)
    config = bench.config.vision
    assert config is not None
    own = torch.rand(3, 3, config.tile_size, config.tile_size)
    pictured = zip(feed.tasks, (own[:1], own[1:]), strict=False)
    feed.tasks = [task._replace(prompt=Prompt(task.prompt.ids, tiles)) for task, tiles in pictured]
    tiles, shown = feed._pictures([1, 0, 1])
    assert len(tiles) == 3 and shown.tolist() == [0, 1, 2, 0, 1]


def test_groups_whose_replies_are_worth_the_same_teach_nothing(bench: Workbench) -> None:
    assert gained([1.0, 1.0, 1.0], normalise=True) == [0.0, 0.0, 0.0]
    assert gained([0.0, 1.0], normalise=True) == [-1.0, 1.0]
    assert gained([0.0, 1.0], normalise=False) == [-0.5, 0.5]
    bench.judges = {"format": lambda reply, answer, tools: 0.0}
    feed = begin(bench).feed
    with feed.opened(DataState(), 0, 1) as reader:
        batch, _ = reader.next()
    loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss)
    assert loss.total(batch).item() == 0 and loss(batch, loss.total(batch)).total.item() == 0


def test_a_run_that_was_paused_ends_with_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    def run(name: str, *stops: int) -> Llama:
        for steps in (*stops, 4):
            tables = tables_of(tiny, tmp_path, updates=2, look_every=1)
            tables["data"]["held_out"] = tables["data"]["chats"][0]
            tables["checkpoint"] = {"every_steps": 1, "every_seconds": 0}
            outcome = tune(from_dict(tables), tmp_path / name, pause_at(steps))
            assert outcome.finished == (steps == 4)
        return load(tmp_path / name / "model", dtype=torch.float32)

    whole, paused = run("whole"), run("paused", 3)
    for (name, one), (_, other) in zip(whole.named_parameters(), paused.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    told = [json.loads(line) for line in (tmp_path / "paused" / REWARDS).read_text().splitlines()]
    assert [(line["when"], line["step"]) for line in told] == [("before", 0), ("between", 2), ("after", 4)]
    assert set(told[0]["sources"]) == {"odd", "even"}


def test_a_round_whose_rewards_are_no_numbers_is_left_out_and_named_also_by_a_run_that_was_stopped(
    tiny: Path, tmp_path: Path
) -> None:
    """As of a judge that divides by nothing, once among six tasks."""

    def strange(reply: str, answer: object, tools: object) -> float:
        assert isinstance(answer, dict)
        return float("nan") if answer.get("strange") else length(reply, answer, tools)

    tables = tables_of(tiny, tmp_path, prompts=1)
    answer = {"kind": "strange", "strange": True}
    write_lines(tmp_path / "tasks.jsonl", [*TASKS[:3], TASKS[3] | {"answer": answer}])
    run, stopped, judges = tmp_path / "run", tmp_path / "stopped", JUDGES | {"strange": strange}
    tables["checkpoint"] = {"every_steps": 1, "every_seconds": 0}
    skip = tables | {"spikes": {"action": "skip"}}
    assert tune(from_dict(skip), run, silent, judges).finished
    (spike,) = [line for line in lines(run) if "skipped" in line]
    assert spike["documents"] == ["task3"] and spike["learnt"] == 0 and spike["reward"] is None
    with pytest.raises(PunaError, match=rf"step {spike['step']}: the loss is not finite, documents task3; lower"):
        tune(from_dict(tables), stopped, silent, judges)
    assert tune(from_dict(skip), stopped, silent, judges).finished
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in (run, stopped)]
    assert weights[0] == weights[1] and losses(run) == losses(stopped)


def test_a_model_that_its_steps_ruined_is_said_to_be(tiny: Path, tmp_path: Path) -> None:
    tables = tables_of(tiny, tmp_path)
    tables["optimizer"]["lr"] = 1e30
    with pytest.raises(PunaError, match=r"model of step 1 cannot reply \(logits are not finite\): lower optimizer.lr"):
        tune(from_dict(tables), tmp_path / "run", silent, JUDGES)


def test_layers_that_are_computed_again_send_tokens_where_they_went(bench: Workbench) -> None:
    ((batch, _),) = batches_of(bench, 1)
    batch = replace(batch, routes=batch.routes.where(batch.routes < 0, 0))  # where the router would not send them all
    gradients = []
    for recompute in (False, True):
        loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss, recompute=recompute)
        bench.model.requires_grad_(True).zero_grad()
        loss(batch, loss.total(batch)).total.backward()  # type: ignore[no-untyped-call]
        gradients.append([each.grad.clone() for each in bench.model.parameters() if each.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_ranks_share_the_tasks_of_a_round_and_sum_its_gradient(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(recipe_of(tiny, tmp_path, tries=1), tmp_path, silent)
    bench.judges = JUDGES
    monkeypatch.setattr(
        Rounds, "_agreed", lambda self, following, rewards: (following, 0.0)
    )  # of ranks that stand one after another
    loss = Grouped(bench.model, bench.recipe.reinforce, bench.recipe.loss)
    bench.model.requires_grad_(True)

    def gradient(batches: list[RolloutBatch]) -> dict[str, torch.Tensor]:
        bench.model.zero_grad()
        total = torch.stack([loss.total(batch) for batch in batches]).sum()
        for batch in batches:
            loss(batch, total, 1 / len(batches)).total.backward()  # type: ignore[no-untyped-call]
        return {name: each.grad.clone() for name, each in bench.model.named_parameters() if each.grad is not None}

    feed, drawn, followed = begin(bench).feed, list[RolloutBatch](), set[tuple[int, ...]]()
    for reader, readers in ((0, 1), (0, 3), (1, 3), (2, 3)):
        with feed.opened(DataState(), reader, readers) as rank:
            feed._round = None
            batch, after = rank.next()
        drawn.append(batch)
        followed.add(after.waiting)
    names = [sorted(feed.names(batch)) for batch in drawn]
    assert sorted(name for part in names[1:] for name in part) == names[0]
    assert len(followed) == 1
    whole, shared = gradient(drawn[:1]), gradient(drawn[1:])
    assert whole.keys() == shared.keys()
    scale = max(float(each.abs().max()) for each in whole.values())
    assert scale > 0 and all((shared[name] - each).abs().max() <= 1e-5 * scale for name, each in whole.items())


def reinforced(tables: dict[str, Any], run: str) -> bool:
    """Tunes here, on a rank or alone, to the end."""
    return tune(from_dict(tables), run, silent, JUDGES).finished


@pytest.mark.slow
def test_two_ranks_learn_what_one_does_from_the_groups_of_both(tiny: Path, tmp_path: Path, two_ranks: Ranks) -> None:
    """Groups, replies and rewards are the same, so gradients differ by the order of sums; later steps amplify that."""
    one = tables_of(tiny, tmp_path, prompts=4, tries=1)
    one["schedule"] |= {"steps": 2}
    one["optimizer"] |= {"lr": 1e-4}
    two = one | {"parallel": {"replicate": 2}, "batch": one["batch"] | {"accumulate": 2}}
    assert reinforced(one, str(tmp_path / "one"))
    assert all(two_ranks.run(reinforced, two, str(tmp_path / "two")))
    for name in ("loss", "grad_norm", "reward", "tokens"):
        expected, found = (logged(tmp_path / run, name) for run in ("one", "two"))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name
    models = [load(tmp_path / name / "model", dtype=torch.float32).state_dict() for name in ("one", "two")]
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "two" / ROUNDS).glob("*-1of2.json"))) == 2


@pytest.mark.parametrize(
    ("table", "key", "value", "named"),
    [
        ("batch", "accumulate", 2, "batch.accumulate: 2"),
        ("parallel", "replicate", 2, "must be 2, a batch a rank"),
        ("parallel", "shard", 2, "replicas alone"),
        ("batch", "row_len", 16, "batch.row_len: 16"),
        ("reinforce", "samples", 1, "reinforce.samples"),
        ("reinforce", "level", "word", "reinforce.level"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    tiny: Path, tmp_path: Path, table: str, key: str, value: object, named: str
) -> None:
    tables = tables_of(tiny, tmp_path)
    tables.setdefault(table, {})[key] = value
    with pytest.raises(ConfigError, match=named):
        begin(open_bench(from_dict(tables), tmp_path, silent))


def test_a_line_without_an_answer_is_named(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, tmp_path)
    line = {name: value for name, value in TASKS[0].items() if name != "answer"}
    write_lines(tmp_path / "tasks.jsonl", [TASKS[0], line])
    with pytest.raises(PromptError, match=r"line 2: answer is None"):
        begin(open_bench(recipe, tmp_path, silent))
