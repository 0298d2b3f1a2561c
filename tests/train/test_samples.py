"""Samples are written when they are due, about texts and pictures, and training ends with the bits of a run without."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.train.loop import train
from puna.train.recipe import from_dict
from puna.train.samples import SAMPLES
from tests.train.runs import assert_same_checkpoint, pause_at, silent


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / SAMPLES).read_text("utf-8").splitlines()]


def test_samples_are_written_when_due_and_training_does_not_notice(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["schedule"] |= {"steps": 4, "warmup_steps": 1, "decay_steps": 1}
    asked = {"prompts": ["llama grass", "sun"], "pictures": 1, "every_steps": 2, "max_tokens": 3}

    plain = from_dict(tables)
    assert train(plain, tmp_path / "plain", silent).finished
    recipe = from_dict(tables | {"samples": asked})
    assert recipe.digest == plain.digest
    assert not train(recipe, tmp_path / "run", pause_at(3)).finished
    first = lines(tmp_path / "run")
    assert train(recipe, tmp_path / "run", silent).finished
    found = lines(tmp_path / "run")
    assert found[:3] == first and [each["step"] for each in found] == [2, 2, 2, 4, 4, 4]
    assert [each["asked"] for each in first[:2]] == asked["prompts"] and first[0]["picture"] == ""
    assert first[2]["picture"].startswith("pictures/") and len(first[2]["wanted"]) == 1
    assert not (tmp_path / "plain" / SAMPLES).exists()
    assert_same_checkpoint(tmp_path / "run", tmp_path / "plain")


def test_seeds_draw_the_same_text_each_time_and_a_step_done_again_replaces_its_samples(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    tables["schedule"] |= {"steps": 1, "warmup_steps": 0, "decay_steps": 0}
    tables["data"]["held_out"] = ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SAMPLES).write_text(
        json.dumps({"step": 1, "written": "of a step that was lost"}) + "\n", "utf-8"
    )
    asked = {"prompts": ["llama"], "every_steps": 1, "max_tokens": 8, "temperature": 1.0}
    recipe = from_dict(tables | {"samples": asked})
    for name in ("run", "again"):
        assert train(recipe, tmp_path / name, silent).finished
    assert lines(tmp_path / "run") == lines(tmp_path / "again") and len(lines(tmp_path / "run")) == 1


def test_samples_that_cannot_be_are_refused(tables: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"samples\.prompts: 'none' .*one or more, or samples\.pictures"):
        from_dict(tables | {"samples": {"every_steps": 5}})
    ranks = {"parallel": {"shard": 2}, "samples": {"every_steps": 5, "prompts": ["a"]}}
    with pytest.raises(ConfigError, match=r"samples\.every_steps: 5 .*none holds the whole model"):
        from_dict(tables | ranks)
