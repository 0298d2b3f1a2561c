"""A tuned model's card shows what was measured after each stage, and names the stages that nobody measured."""

from pathlib import Path

import pytest

from puna.card import card, records
from puna.errors import ConfigError
from puna.presets import CRIA
from puna.records import write_evaluations, write_training
from tests.card.conftest import evaluation, training
from tests.card.test_card import rows_of

STAGES = {"base": "pretrain", "chats": "supervised", "games": "reinforce", "likes": "preference"}


def made(folder: Path) -> card.Card:
    return card.make(records.gather("toy", CRIA, [folder]))


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A model of four stages, of which the last was not measured."""
    write_training(tmp_path / "training.json", [training(name=name, phase=phase) for name, phase in STAGES.items()])
    for name, score in (("base", 0.1), ("chats", 0.5), ("games", 0.75)):
        asked = evaluation(task="turns", benchmark="Ends its turn", table="", score=score, low=score, high=1.0, n=40)
        bits = evaluation(task="bits", benchmark="Stories", unit="bits per byte", best="low", score=2.5, low=None, n=7)
        text = write_evaluations([asked, bits] if name != "base" else [asked])
        (tmp_path / f"stage-{name}.json").write_text(text, "utf-8")
    return tmp_path


def test_measures_stand_stage_by_stage(tuned: Path) -> None:
    text = made(tuned).markdown()
    cells = ["10.0 (10.0 to 100.0)", "50.0 (50.0 to 100.0)", "75.0 (75.0 to 100.0)", "–"]
    assert rows_of(text, "Ends its turn") == [["Ends its turn", "macro_avg/acc_char", "more", "40", *cells]]
    assert rows_of(text, "Stories")[0][2:] == ["less", "7", "–", "2.5", "2.5", "–"]
    assert rows_of(text, "Measure")[0][4:] == [
        "base (pre-training)",
        "chats (supervised tuning)",
        "games (reinforcement learning)",
        "likes (preferences, DPO)",
    ]


def test_a_stage_that_nobody_measured_is_missing(tuned: Path) -> None:
    missing = {each.what for each in made(tuned).missing}
    assert "measures of the model after likes" in missing and "measures of the model after games" not in missing


def test_a_base_without_a_record_is_missing(tuned: Path) -> None:
    for name in STAGES:
        (tuned / f"stage-{name}.json").unlink(missing_ok=True)
    write_training(tuned / "training.json", [training(name="chats", phase="supervised")])
    missing = {each.what for each in made(tuned).missing}
    assert "how the weights came to be that chats tuned" in missing


def test_a_model_that_was_not_tuned_has_no_stages(folder: Path) -> None:
    assert "Stages" not in [each.title for each in made(folder).sections]


def test_measures_of_a_run_that_is_not_on_record_are_refused(tuned: Path) -> None:
    (tuned / "stage-dreams.json").write_text(write_evaluations([]), "utf-8")
    with pytest.raises(ConfigError, match="has no run 'dreams'"):
        made(tuned)
