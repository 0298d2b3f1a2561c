"""From a name to where the records lie."""

import json
from pathlib import Path

import pytest

from puna.card.places import find
from puna.errors import ConfigError
from puna.records import write_training
from tests.card.conftest import training


def test_a_preset_has_what_its_makers_declare_and_no_weights() -> None:
    place = find("scout")
    (folder,) = place.folders
    assert (place.name, place.config) == ("scout", "scout") and [file.name for file in folder.iterdir()] == [
        "card.toml"
    ]


def test_a_model_has_its_records_beside_it_below_it_or_in_its_run(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"text_config": {"dtype": "float32"}}))
    assert find(str(model)) == ("model", str(model), (model, model / "records"), 4)
    (tmp_path / "run" / "log.jsonl").write_text("")
    assert find(str(model)).folders == (model, model / "records", tmp_path / "run")
    run = find(str(tmp_path / "run"), [tmp_path])
    assert (run.name, run.config, run.folders[0]) == ("run", str(model), tmp_path) and model in run.folders


def test_a_run_that_is_not_finished_has_the_configuration_of_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ConfigError, match="neither a model nor"):
        find(str(tmp_path))
    write_training(tmp_path / "training.json", [training()])
    assert find(str(tmp_path)).config == "cria"


def test_further_records_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        find("cria", [tmp_path / "nowhere"])
