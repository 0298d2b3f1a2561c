"""What a watcher is told of a run that waits, grows, resumes, is long, or is done."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.records import ENERGY, Energy, write_energy
from puna.train.loop import LOG
from puna.train.samples import SAMPLES
from puna.train.watch import news as told
from puna.train.watch.news import Place, news

START = Energy(
    phase="pretrain",
    date="2026-01-01T00:00:00+00:00",
    seconds=3600.0,
    joules={"declared": 3.6e6},
    processors=1,
    tdp_watts=1000.0,
    utilisation=1.0,
    pue=1.0,
    location_kg_per_kwh=0.4,
    market_kg_per_kwh=0.0,
    source="test",
    kwh=1.0,
    location_kg=0.4,
    market_kg=None,
    first_step=0,
    last_step=3,
    tokens=300,
    version="0",
)


def line(step: int, steps: int = 100) -> str:
    loads = [[0.5, 1.5], [0.0, 1 + step / 10]]
    values = {"step": step, "steps": steps, "loss": 5 / step, "lr": 0.01, "grad_norm": 1.0, "tokens": 100}
    return json.dumps(values | {"seconds": 0.5, "tokens_per_second": 200.0, "loads": loads}) + "\n"


def write(run: Path, *steps: int, of: int = 100) -> None:
    run.mkdir(exist_ok=True)
    partial = run / "partial"
    partial.write_text("".join(line(step, of) for step in steps), "utf-8")
    partial.replace(run / LOG)


def seen(found: dict[str, Any]) -> list[int]:
    return [each["step"] for each in found["steps"]]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: no such folder; name that of a run"):
        news(tmp_path / "none", Place())


def test_a_run_that_has_not_begun_waits(tmp_path: Path) -> None:
    found = news(tmp_path, Place())
    assert (found["state"], found["steps"], found["energy"], found["held_out"]) == ("waiting", [], [], None)
    assert found["work"] is None


def test_a_growing_log_is_told_once_and_half_lines_later(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    first = news(tmp_path, Place())
    assert seen(first) == [1, 2] and first["is_new"] and first["state"] == "running"
    whole = line(3)
    with (tmp_path / LOG).open("a", encoding="utf-8") as file:
        file.write(whole[:20])
        file.flush()
        second = news(tmp_path, Place(**first["place"]))
        assert seen(second) == [] and not second["is_new"] and second["state"] == "running"
        file.write(whole[20:])
    third = news(tmp_path, Place(**second["place"]))
    assert seen(third) == [3] and third["steps"][0]["loads"] == [[0.5, 1.5], [0.0, 1.3]]


def test_a_resumed_run_is_told_from_the_start_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    first = news(tmp_path, Place())
    keeps_the_number_of_the_old_file = (tmp_path / LOG).open()
    write(tmp_path, 1, 2, 4)
    again = news(tmp_path, Place(**first["place"]))
    assert again["is_new"] and seen(again) == [1, 2, 4]
    keeps_the_number_of_the_old_file.close()


def test_a_run_is_finished_with_its_last_step_and_still_when_nothing_comes(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, of=2)
    write_energy(tmp_path / ENERGY, [START])
    (tmp_path / "held_out.json").write_text(json.dumps({"all": {"bits_per_byte": 1.5, "tokens": 9}}), "utf-8")
    found = news(tmp_path, Place())
    assert found["state"] == "finished" and found["held_out"] == {"all": 1.5}
    assert found["energy"][0]["kwh"] == 1.0 and found["energy"][0]["joules"] == {"declared": 3.6e6}
    write(tmp_path, 1, 2)
    os.utime(tmp_path / LOG, (0, 0))
    assert news(tmp_path, Place())["state"] == "still"


def test_a_long_log_is_thinned_out_and_keeps_first_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "MOST_LINES", 10)
    write(tmp_path, *range(1, 96))
    steps = seen(news(tmp_path, Place()))
    assert steps[0] == 1 and steps[-1] == 95 and steps == sorted(steps) and 5 <= len(steps) <= 12


def sample(step: int, **facts: Any) -> str:
    values = {"step": step, "asked": "The sun", "written": f" of step {step}", "picture": "", "wanted": []}
    return json.dumps(values | facts) + "\n"


def test_samples_of_the_newest_steps_come_first(tmp_path: Path) -> None:
    assert news(tmp_path, Place())["samples"] == []
    steps = range(10, 10 + 2 * told.MOST_SAMPLED)
    content = "".join(sample(step) + sample(step, asked="And?", picture="a.png", wanted=["sun"]) for step in steps)
    (tmp_path / SAMPLES).write_text(content, "utf-8")
    found = news(tmp_path, Place())["samples"]
    assert [each["step"] for each in found] == [step for step in reversed(steps[told.MOST_SAMPLED :]) for _ in range(2)]
    assert [each["asked"] for each in found[:2]] == ["The sun", "And?"] and found[1]["wanted"] == ["sun"]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(line(1).replace("1.0,", "NaN,", 1), "utf-8")
    assert news(tmp_path, Place())["steps"][0]["grad_norm"] is None
