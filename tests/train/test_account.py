"""What a run leaves on record: what it was told, what it read and used, and what came before it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from puna import host
from puna.records import ENERGY, RECORDS, TRAINING, read_energy, read_training
from puna.train.account import account
from puna.train.loop import train
from puna.train.recipe import from_dict
from puna.weights import hub
from tests.train.runs import silent


def test_a_run_and_the_one_it_started_from_are_on_one_record(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["data"]["held_out"] = ""
    tables["schedule"] |= {"steps": 2, "warmup_steps": 1, "decay_steps": 0}
    tables["energy"] = {"tdp_watts": 100, "source": "here"}
    assert train(from_dict(tables), tmp_path / "first", silent).finished
    tables["model"]["start"] = str(tmp_path / "first" / "model")
    (tmp_path / "second").mkdir()
    account(tmp_path / "second", from_dict(tables), {})
    first, second = read_training(tmp_path / "second" / TRAINING)
    assert [first.name, second.name] == ["first", "second"] and first.steps == first.planned == 2
    assert first.hosts == (host.describe(),) and second.recipe["model"]["start"] == tables["model"]["start"]
    assert first.energy == read_energy(tmp_path / "first" / ENERGY) and first.ended >= first.began > ""
    log = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text("utf-8").splitlines()]
    assert (first.tokens, first.tiles) == tuple(sum(line[name] for line in log) for name in ("tokens", "tiles"))
    assert {name: source.documents for name, source in first.sources.items()} == {"text": 21, "picture": 20, "chat": 20}


def test_what_was_tuned_from_the_model_that_ships_begins_with_its_runs(tables: dict[str, Any], tmp_path: Path) -> None:
    recipe = from_dict(tables)
    (tmp_path / "tuned").mkdir()
    account(tmp_path / "tuned", replace(recipe, model=replace(recipe.model, start="cria")), {})
    runs = read_training(tmp_path / "tuned" / TRAINING)
    assert runs[:-1] == read_training(hub.resolve("cria") / RECORDS / TRAINING) != () and runs[-1].name == "tuned"


def test_a_run_that_goes_on_stays_one_run_on_record(tables: dict[str, Any], tmp_path: Path) -> None:
    line = {"step": 1, "tokens": 5, "learnt": 4, "tiles": 0, "seconds": 1.5}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    for _ in range(2):
        account(tmp_path, from_dict(tables), {})
    (run,) = read_training(tmp_path / TRAINING)
    assert (run.steps, run.tokens, run.seconds, len(run.hosts)) == (1, 5, 1.5, 1)
