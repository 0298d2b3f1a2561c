"""Tuning ends with the same bits however it was interrupted, and leaves what people run: a model, an adapter."""

import hashlib
import json
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import ConfigError, PunaError, WeightsError
from puna.records import ENERGY, TRAINING, read_energy, read_training
from puna.train.reinforce import REWARDS, ROUNDS
from puna.train.state import checkpoints
from puna.train.tune import HELD_OUT, tune
from puna.train.tune_recipe import TuneRecipe, from_dict
from puna.train.watch.work import WORK, token_flops
from puna.weights import peft
from puna.weights.checkpoint import load, open_config
from tests.reference.ranks import Ranks
from tests.reference.tiny import read_whole, write_tiny_checkpoint
from tests.train.chat_lines import CHATS, PAIRS, TASKS, write_lines
from tests.train.runs import Command, Tables, lines, losses, silent


@pytest.fixture
def tables(tiny: Path, tmp_path: Path) -> Tables:
    """A recipe of four steps on ten conversations."""
    return {
        "model": {"base": str(tiny)},
        "data": {"chats": [str(write_lines(tmp_path / "chats.jsonl", CHATS))], "store": str(tmp_path / "store")},
        "objective": {"kind": "supervised"},
        "batch": {"rows": 2, "row_len": 120, "tiles": 0, "window": 8},
        "optimizer": {
            "lr": 0.01,
            "weight_decay": 0.0,
            "momentum": 0.95,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "clip_norm": 1.0,
            "matrices": "adamw",
        },
        "schedule": {"steps": 4, "warmup_steps": 1, "decay_steps": 1, "final_fraction": 0.1},
        "loss": {"balance": 0.01, "chunk": 64},
        "compute": {"dtype": "bfloat16", "compile": False, "threads": 1},
        "checkpoint": {"every_steps": 2, "every_seconds": 0},
    }


def with_pairs(tables: Tables, tmp_path: Path) -> Tables:
    data = tables["data"] | {"chats": [str(write_lines(tmp_path / "pairs.jsonl", PAIRS))]}
    return tables | {"data": data, "objective": {"kind": "preference"}}


def with_lora(tables: Tables, **model: Any) -> Tables:
    return tables | {"lora": {"rank": 4, "alpha": 8}, "model": tables["model"] | model}


def with_tasks(tables: Tables, tmp_path: Path) -> Tables:
    """Two steps a round; whoever ends within 48 tokens is right, as this model does now and then."""
    tasks = str(write_lines(tmp_path / "tasks.jsonl", TASKS))
    return tables | {
        "data": tables["data"] | {"chats": [tasks], "held_out": tasks},
        "objective": {"kind": "reinforce"},
        "reinforce": {"prompts": 2, "samples": 6, "updates": 2, "max_new_tokens": 48, "look_every": 2},
    }


def with_teacher(tables: Tables, tmp_path: Path) -> Tables:
    """A teacher that is asked once, before the first step, of the likeliest tokens."""
    teacher = {"teacher": str(write_tiny_checkpoint(tmp_path / "teacher")), "top_k": 4}
    return tables | {"objective": {"kind": "distill"}, "distill": teacher}


def aimed_at(kind: str, tables: Tables, tmp_path: Path) -> Tables:
    """The tables of another aim; "lora" is the same one with factors."""
    aims = {"preference": with_pairs, "reinforce": with_tasks, "distill": with_teacher}
    return with_lora(tables) if kind == "lora" else aims[kind](tables, tmp_path) if kind in aims else tables


def last_bits(run: Path, steps: int = 4) -> dict[str, str]:
    """Returns the hashes of the state behind the last step."""
    ((step, home),) = checkpoints(run)
    assert step == steps
    files: dict[str, str] = json.loads((home / "state.json").read_text("utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


@pytest.mark.parametrize(
    "kind", ["preference", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("supervised", "lora"))]
)
def test_a_run_that_crashed_ends_with_the_same_bits(tables: Tables, tmp_path: Path, kind: str) -> None:
    recipe = from_dict(aimed_at(kind, tables, tmp_path))
    assert tune(recipe, tmp_path / "whole", silent).finished

    def crash(line: str) -> None:
        if line.startswith("step 3/"):
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        tune(recipe, tmp_path / "broken", crash)
    assert tune(recipe, tmp_path / "broken", silent).finished
    assert last_bits(tmp_path / "whole") == last_bits(tmp_path / "broken")
    a, b = lines(tmp_path / "whole"), lines(tmp_path / "broken")
    assert [each["loss"] for each in a] == [each["loss"] for each in b] and a[-1]["loss"] < a[0]["loss"]


def assert_same_end(one: Path, other: Path, steps: int) -> None:
    """The same bits of state and model, the same log, the same rounds and what was measured on the way."""
    assert last_bits(one, steps) == last_bits(other, steps)
    assert losses(one) == losses(other) and len(losses(one)) == steps
    assert left_behind(one) == left_behind(other)


def left_behind(run: Path) -> dict[str, str]:
    """Hashes of what a run writes besides its state."""
    files = [run / "model" / "model.safetensors", run / REWARDS, *(run / ROUNDS).glob("*")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parallel", "kills"),
    [
        ("reinforce", {}, 8),
        ("reinforce", {"replicate": 2}, 8),
        ("supervised", {}, 4),
        ("supervised", {"shard": 2, "expert": 2}, 4),
        ("lora", {}, 4),
        ("preference", {}, 4),
        ("distill", {}, 4),
    ],
    ids=str,
)
def test_a_run_that_is_killed_at_random_ends_with_the_bits_of_one_left_alone(
    tables: Tables, tmp_path: Path, kind: str, parallel: dict[str, int], kills: int
) -> None:
    """With SIGKILL, at random steps: while it draws and learns, while a checkpoint is written, while it begins."""
    steps, struck = 24 if kind == "reinforce" else 60, 0
    tables = aimed_at(kind, tables, tmp_path)
    tables["batch"] |= {"accumulate": 2 if parallel else 1}
    tables |= {
        "schedule": tables["schedule"] | {"steps": steps},
        "parallel": parallel,
        "drift": {"batches": 0 if "shard" in parallel else 1},
        "checkpoint": {"every_steps": 3, "every_seconds": 0},  # and so within rounds of two steps too
    }
    alone, killed = (Command(tables, tmp_path / name, "tune") for name in ("alone", "killed"))
    ranks = alone.world
    assert alone.start().join() == [0] * ranks
    draw = random.Random(kills)
    for number, moment in enumerate(sorted(draw.randrange(1, steps * 3 // 4) for _ in range(kills))):
        started, victim = killed.start(), draw.randrange(ranks)
        if number % 4:  # else while it begins
            started.wait_until(partial(killed.has_come_to, moment, number % 4 == 2))
        time.sleep(draw.random() * (0.1 if number % 4 else 1.0))
        started.kill(victim)
        started.told_to_end()
        codes = started.join()
        print(f"kill {number}: rank {victim}, {killed.n_logged} steps, half written {killed.is_writing}, exits {codes}")
        if codes[victim] == -signal.SIGKILL:  # and not at its end before
            struck += 1
            assert {codes[other] for other in range(ranks) if other != victim} <= {2, -signal.SIGTERM}, started.words
    assert struck > kills // 2
    assert killed.start().join() == [0] * ranks
    assert_same_end(killed.run, alone.run, steps)
    if kind == "reinforce":
        assert {each["reward"] for each in lines(alone.run)} != {0.0}
        assert max(each["grad_norm"] for each in lines(alone.run)) > 0


def test_tuning_all_weights_leaves_a_model_and_its_records(tables: Tables, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".model.0a.partial").mkdir(parents=True)  # of a start that was killed while it wrote the model
    tables["data"]["held_out"] = str(write_lines(tmp_path / "held_out.jsonl", CHATS[:2]))
    assert tune(from_dict(tables), run, silent).finished
    model = load(run / "model")
    assert model.config == open_config(tiny) and (run / "model" / "tokenizer.json").is_file()
    assert not list(run.glob(".*.partial"))
    held_out = json.loads((run / HELD_OUT).read_text("utf-8"))
    assert held_out["after"]["all"]["nats_per_token"] < held_out["before"]["all"]["nats_per_token"]
    assert {each.phase for each in read_energy(run / ENERGY)} == {"supervised"}
    (record,) = read_training(run / TRAINING)
    assert record.phase == "supervised" and {n: s.documents for n, s in record.sources.items()} == {
        "colours": 5,
        "herds": 5,
    }
    drift = [json.loads(line) for line in (run / "drift.jsonl").read_text("utf-8").splitlines()]
    assert [each["step"] for each in drift] == [4] and 0 < drift[0]["agreement"] <= 1


def test_an_adapter_and_the_merged_model_say_the_same(tables: Tables, tiny: Path, tmp_path: Path) -> None:
    tables["compute"]["dtype"] = "float32"
    assert tune(from_dict(with_lora(tables)), tmp_path / "run", silent).finished
    work = json.loads((tmp_path / "run" / WORK).read_text("utf-8"))
    assert token_flops(open_config(tiny), {}) < work["token_flops"] < token_flops(open_config(tiny))
    adapter = peft.load(tmp_path / "run" / "adapter", open_config(tiny))
    assert any(factors.b.abs().max() > 0 for factors in adapter.values())
    base, merged = (load(folder, dtype=torch.float32) for folder in (tiny, tmp_path / "run" / "model"))
    assert base.embedding.weight.equal(merged.embedding.weight)
    from puna.adapters.attach import attach

    attach(base, adapter)
    ids = list(range(20))
    torch.testing.assert_close(read_whole(base, ids), read_whole(merged, ids))


def test_a_base_in_small_numbers_leaves_an_adapter(tables: Tables, tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = with_lora(tables, quantize="int8") | {"parallel": {"recompute": True}}
    recipe["lora"] |= {"experts_share": 0.5}
    assert tune(from_dict(recipe), tmp_path / "run", said.append).finished
    steps = lines(tmp_path / "run")
    assert steps[-1]["loss"] < steps[0]["loss"] and not (tmp_path / "run" / "model").exists()
    assert peft.load(tmp_path / "run" / "adapter", open_config(tiny)) and "puna convert" in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("supervised", "chat"), ("lora", "chat"), ("preference", "pair"), ("reinforce", "task")]
)
def test_steps_that_are_not_finite_stop_the_run_or_are_left_out_and_named(
    tables: Tables, tmp_path: Path, kind: str, name: str
) -> None:
    tables = aimed_at(kind, tables, tmp_path)
    tables["optimizer"]["lr"] = 1e30
    tables["checkpoint"]["every_steps"] = 1
    tables["schedule"]["steps"] = 8
    tables["reinforce"] = tables.get("reinforce", {}) | {"updates": 4}
    wrong = rf"the (loss|gradient) is not finite, documents {name}\d.*"
    with pytest.raises(PunaError, match=f"step 2: {wrong}; lower optimizer.lr"):
        tune(from_dict(tables), tmp_path / "run", silent)
    assert checkpoints(tmp_path / "run")[-1][0] == 1
    tables["spikes"] = {"action": "skip", "in_a_row": 3}
    with pytest.raises(PunaError, match=f"step 4: {wrong}; so were 3 steps in a row"):
        tune(from_dict(tables), tmp_path / "run", silent)
    left_out = [line for line in lines(tmp_path / "run") if "skipped" in line]
    assert [line["step"] for line in left_out] == [2, 3]
    assert all(line["documents"][0].startswith(name) and line["learnt"] == 0 for line in left_out)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks"), [("reinforce", 1), ("reinforce", 2), ("supervised", 1), ("preference", 1)])
def test_where_the_disk_is_full_the_run_says_so_and_nothing_is_lost(
    tables: Tables, tmp_path: Path, kind: str, ranks: int
) -> None:
    """Of a file no more can be written than half of a checkpoint's: as on a disk that fills up."""
    steps = 24 if kind == "reinforce" else 100
    tables = aimed_at(kind, tables, tmp_path)
    tables["batch"] |= {"accumulate": ranks}
    tables |= {"schedule": tables["schedule"] | {"steps": steps}, "parallel": {"replicate": ranks}}
    alone, filled = (Command(tables, tmp_path / name, "tune") for name in ("alone", "filled"))
    assert alone.start().join() == [0] * ranks
    started = filled.start()
    started.wait_until(lambda: bool(checkpoints(filled.run)))
    started.kill(0)
    started.told_to_end()
    started.join()
    (kept, home), *_ = checkpoints(filled.run)
    largest = max(file.stat().st_size for file in home.iterdir())
    started = filled.start({0: largest // 2})
    assert started.join() == [2] * ranks
    for words in started.words:
        (line,) = [each for each in words.splitlines() if each.startswith("puna: ")]
        assert "cannot be written" in line and "File too large" in line and "make room and go on" in line
    assert [step for step, _ in checkpoints(filled.run)] == [kept] and not filled.is_writing
    assert filled.start().join() == [0] * ranks
    assert f"resumed at step {kept} of {steps}" in filled.said(0)
    assert_same_end(filled.run, alone.run, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks", "file"),
    [
        ("reinforce", 1, "rollouts/000000.json"),
        ("reinforce", 2, "rollouts/000000-0of2.json"),
        ("lora", 1, "model/model.safetensors"),
    ],
)
def test_a_round_or_a_model_that_finds_no_room_is_written_by_the_next_start(
    tables: Tables, tmp_path: Path, kind: str, ranks: int, file: str
) -> None:
    """All but the last byte of the first rank's file can be written; every other file of a run is smaller."""
    tables = aimed_at(kind, tables, tmp_path) | {"parallel": {"replicate": ranks}}
    tables["batch"] |= {"accumulate": ranks}
    if kind == "lora":
        tables["lora"] |= {"targets": ["dense"]}
    whole, filled = (Command(tables, tmp_path / name, "tune") for name in ("whole", "filled"))
    assert whole.start().join() == [0] * ranks
    started = filled.start({0: (whole.run / file).stat().st_size - 1})
    assert started.join() == [2] * ranks, started.words
    for words in started.words:
        (line,) = [each for each in words.splitlines() if each.startswith("puna: ")]
        assert "File too large" in line
    assert ": cannot be written (File too large)" in filled.said(0)
    assert filled.n_logged == (4 if kind == "lora" else 0)
    assert filled.start().join() == [0] * ranks
    assert_same_end(filled.run, whole.run, 4)


@pytest.mark.slow
def test_a_second_start_in_the_folder_of_a_run_is_refused(tables: Tables, tmp_path: Path) -> None:
    tables["drift"] = {"batches": 0}
    refused = []

    def start_again(line: str) -> None:
        if line.startswith("step 1/"):
            with pytest.raises(ConfigError, match=r"--run .*run: is being trained already"):
                tune(from_dict(tables), tmp_path / "run", silent)
            refused.append(line)

    assert tune(from_dict(tables), tmp_path / "run", start_again).finished and refused


@pytest.mark.slow
def test_other_conversations_cannot_continue_a_run(tables: Tables, tmp_path: Path) -> None:
    tables["drift"] = {"batches": 0}
    tune(from_dict(tables), tmp_path / "run", silent)
    write_lines(tmp_path / "chats.jsonl", CHATS[:5])
    with pytest.raises(WeightsError, match="made with other documents"):
        tune(from_dict(tables), tmp_path / "run", silent)


@pytest.mark.slow
def test_frozen_parts_stay_and_a_part_that_is_not_there_is_named(tables: Tables, tiny: Path, tmp_path: Path) -> None:
    tables["model"]["frozen"] = ["router", "embedding"]
    tune(from_dict(tables), tmp_path / "run", silent)
    base, tuned = load(tiny, dtype=torch.bfloat16), load(tmp_path / "run" / "model")
    for name, parameter in tuned.named_parameters():
        is_frozen = "router" in name or name.startswith(("embedding", "vision", "projector"))
        assert parameter.equal(base.get_parameter(name).to(parameter.dtype)) is is_frozen, name
    tables["model"]["frozen"] = ["tail"]
    with pytest.raises(ConfigError, match=r"model\.frozen: 'tail' is no part of this model"):
        tune(from_dict(tables), tmp_path / "other", silent)


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("objective", {"kind": "prayer"}, "objective.kind: 'prayer' is not possible"),
        ("model", {"base": "x", "quantize": "int4"}, "model.quantize: 'int4' is not possible"),
        ("preference", {"beta": 0.0}, "preference.beta"),
        ("lora", {"rank": 0}, "lora.rank"),
        ("loss", {"balance": 0.0, "bias_rate": 0.1}, "loss.bias_rate"),
        ("data", {"chats": "x", "store": "y", "too_long": "cut"}, "data.too_long"),
        ("filter", {"easy_accuracy": 2.0}, "filter.easy_accuracy"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tables: Tables, table: str, values: Tables, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(tables | {table: values})
    assert said in str(raised.value)


def test_where_a_run_is_watched_does_not_change_what_it_is(tables: Tables) -> None:
    def digest(**more: Any) -> str:
        recipe: TuneRecipe = from_dict(tables | more)
        return recipe.digest

    assert digest() == digest(drift={"every_steps": 5}) != digest(lora={"rank": 2})


def tuned(tables: Tables, run: str) -> bool:
    """Tunes here, on a rank or alone, to the end."""
    return tune(from_dict(tables), run, silent).finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["preference", "supervised"])
def test_two_ranks_that_read_different_pairs_tune_as_one(
    tables: Tables, tmp_path: Path, two_ranks: Ranks, kind: str
) -> None:
    tables["compute"]["dtype"] = "float32"
    tables["batch"] |= {"rows": 1, "accumulate": 2}
    tables["optimizer"]["lr"] = 1e-3
    tables = with_lora(with_pairs(tables, tmp_path) if kind == "preference" else tables)
    assert tuned(tables, str(tmp_path / "one"))
    assert all(two_ranks.run(tuned, tables | {"parallel": {"replicate": 2}}, str(tmp_path / "two")))
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    for name in ("loss", "grad_norm", "tokens", "max_load", *(["margin"] if kind == "preference" else [])):
        assert [each[name] for each in two] == pytest.approx([each[name] for each in one], rel=1e-3, abs=1e-5), name
    assert (tmp_path / "two" / "model" / "config.json").is_file()
