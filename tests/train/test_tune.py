"""Tuning ends with the same bits however it was interrupted, and leaves what people run: a model, an adapter."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import ConfigError, PunaError, WeightsError
from puna.records import ENERGY, TRAINING, read_energy, read_training
from puna.train import state as states
from puna.train.loop import LOG
from puna.train.state import checkpoints
from puna.train.tune import HELD_OUT, tune
from puna.train.tune_recipe import TuneRecipe, from_dict
from puna.train.watch.work import WORK, token_flops
from puna.weights import peft
from puna.weights.checkpoint import load, open_config
from tests.reference.ranks import Ranks
from tests.reference.tiny import read_whole
from tests.train.chat_lines import CHATS, PAIRS, write_lines

Tables = dict[str, Any]


@pytest.fixture(autouse=True)
def deterministic_only_here() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


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


def silent(line: str) -> None:
    """Progress that nobody reads."""


def last_bits(run: Path, steps: int = 4) -> dict[str, str]:
    """Returns the hashes of the state behind the last step."""
    ((step, home),) = checkpoints(run)
    assert step == steps
    files: dict[str, str] = json.loads((home / "state.json").read_text("utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    "kind", ["preference", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("supervised", "lora"))]
)
def test_a_run_that_crashed_ends_with_the_same_bits(tables: Tables, tmp_path: Path, kind: str) -> None:
    if kind == "preference":
        tables = with_pairs(tables, tmp_path)
    recipe = from_dict(with_lora(tables) if kind == "lora" else tables)
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


@pytest.mark.slow
def test_a_process_that_was_killed_ends_with_the_same_bits(tables: Tables, tmp_path: Path) -> None:
    tables |= {"schedule": tables["schedule"] | {"steps": 30}}
    code = "import json, sys; from puna.train.tune import tune; from puna.train.tune_recipe import from_dict; "
    code += "tune(from_dict(json.loads(sys.argv[1])), sys.argv[2], lambda line: None)"
    command = [sys.executable, "-c", code, json.dumps(tables)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    for n_lines in (5, 17):
        process = subprocess.Popen([*command, str(tmp_path / "broken")])
        log = tmp_path / "broken" / LOG
        while process.poll() is None and (not log.is_file() or log.read_text("utf-8").count("\n") < n_lines):
            time.sleep(0.01)
        process.kill()
        assert process.wait() != 0, "it was done before it could be killed"
    subprocess.run([*command, str(tmp_path / "broken")], check=True)
    assert last_bits(tmp_path / "whole", 30) == last_bits(tmp_path / "broken", 30)


def test_tuning_all_weights_leaves_a_model_and_its_records(tables: Tables, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tables["data"]["held_out"] = str(write_lines(tmp_path / "held_out.jsonl", CHATS[:2]))
    assert tune(from_dict(tables), run, silent).finished
    model = load(run / "model")
    assert model.config == open_config(tiny) and (run / "model" / "tokenizer.json").is_file()
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
def test_a_loss_that_is_not_finite_names_conversations_and_leaves_the_checkpoint(
    tables: Tables, tmp_path: Path
) -> None:
    tables["optimizer"]["lr"] = 1e30
    tables["checkpoint"]["every_steps"] = 1
    with pytest.raises(PunaError, match=r"step 2: the loss is not finite, documents chat\d"):
        tune(from_dict(with_lora(tables)), tmp_path / "run", silent)
    assert checkpoints(tmp_path / "run")[-1][0] == 1


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables["checkpoint"]["every_steps"] = 1
    recipe = from_dict(with_pairs(tables, tmp_path))
    write = states.write_tensors

    def full(*arguments: Any, **options: Any) -> Any:
        if "00000002" in str(options["checkpoint_id"]):
            raise OSError(28, "No space left on device")
        return write(*arguments, **options)

    monkeypatch.setattr(states, "write_tensors", full)
    with pytest.raises(WeightsError, match=r"cannot be written \(\[Errno 28\] No space left"):
        tune(recipe, tmp_path / "run", silent)
    assert checkpoints(tmp_path / "run")[-1][0] == 1
    monkeypatch.undo()
    assert tune(recipe, tmp_path / "run", silent).finished


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
