"""A recipe is read whole or refused with the field, its value and the remedy."""

import copy
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.train.recipe import from_dict, override, read


def test_the_recipe_of_cria_can_be_read_and_overridden() -> None:
    path = Path(__file__).parents[2] / "recipes" / "cria.toml"
    recipe = read(path, ["schedule.steps=2000", "data.held_out=none.jsonl", "data.passes.emoji=2"])
    assert recipe.model.preset == "cria"
    assert (recipe.schedule.steps, recipe.data.held_out, recipe.data.passes["emoji"]) == (2000, "none.jsonl", 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedule.stepz=3", "schedule.stepz: unknown key .*did you mean steps"),
        ("schedule.steps=0", "schedule.steps: 0 .*positive"),
        ("schedule.steps=many", "schedule.steps: 'many' is not of the right kind; give a int"),
        ("compute.compile=1", "compute.compile: 1 is not of the right kind"),
        ("compute.dtype=half", "compute.dtype: 'half'"),
        ("schedule.warmup_steps=9", "warmup_steps"),
        ("data.passes.text=-1", "data.passes.text"),
        ("whatever=1", "whatever: unknown key"),
        ("model=3", "model: 3 is not a table"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_a_remedy(tables: dict[str, Any], change: str, message: str) -> None:
    override(tables, change)
    with pytest.raises(ConfigError, match=message):
        from_dict(tables)


def test_a_missing_key_is_named(tables: dict[str, Any]) -> None:
    del tables["optimizer"]["lr"]
    with pytest.raises(ConfigError, match=r"optimizer.lr: missing"):
        from_dict(tables)


def test_a_missing_file_and_text_that_is_not_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[model\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not TOML"):
        read(tmp_path / "bad.toml")


@pytest.mark.parametrize("text", ["schedule.steps", "=3", "a..b=3", "model.seed.deep=3"])
def test_an_override_of_another_form_is_refused(tables: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        override(tables, text)


def test_the_digest_changes_with_what_is_trained_but_not_with_when_it_is_saved(tables: dict[str, Any]) -> None:
    first = from_dict(copy.deepcopy(tables)).digest
    tables["checkpoint"]["every_steps"] = 7
    assert from_dict(tables).digest == first
    tables["schedule"]["steps"] = 9
    assert from_dict(tables).digest != first
