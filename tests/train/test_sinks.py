"""What other tools are told of a run's steps, read back from their own files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import ConfigError
from puna.train.loop import LOG, train
from puna.train.recipe import from_dict
from puna.train.sinks import opened, scalars
from tests.train.runs import silent

FACTS = {"step": 3, "steps": 9, "loss": 1.5, "epoch": 0, "loads": [(0.5, 1.5), (0.0, 2.0)], "note": "no number"}


def tell(sink: str, run: Path, behind: int, *steps: int) -> None:
    """Opens a sink for a run that goes on behind step `behind`, and tells it a loss of each step."""
    with opened([sink], run, behind, {"seed": 1}) as (opened_sink,):
        for step in steps:
            opened_sink.write(step, {"loss": 1 / step})


def events(run: Path) -> list[tuple[int, float]]:
    """The losses that TensorBoard itself reads."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return [(each.step, each.value) for each in found.Scalars("loss")]


def rows(run: Path) -> list[tuple[int, float]]:
    """The losses in all files that Weights & Biases wrote offline, in order."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        content, at = path.read_bytes(), 7  # behind the file's own header
        assert content.startswith(b":W&B") and len(content) < 2**15  # one block of LevelDB's log format
        while at < len(content):
            size = int.from_bytes(content[at + 4 : at + 6], "little")
            record = proto.Record.FromString(content[at + 7 : at + 7 + size])
            at += 7 + size
            if record.HasField("history"):
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                found.append((int(json.loads(items["_step"])), float(json.loads(items["loss"]))))
    return found


def test_numbers_of_a_line_are_told_and_those_of_layers_by_name() -> None:
    assert scalars(FACTS) == {
        "loss": 1.5,
        "epoch": 0.0,
        "loads/0/least": 0.5,
        "loads/0/most": 1.5,
        "loads/1/least": 0.0,
        "loads/1/most": 2.0,
    }


def test_no_sink_writes_nothing(tmp_path: Path) -> None:
    with opened([], tmp_path, 0, {}) as sinks:
        assert sinks == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sink", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(sink: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, sink, None)  # as if it were not installed
    with (
        pytest.raises(ConfigError, match=rf'"puna\[{sink}\]", or leave it out of log.sinks'),
        opened([sink], tmp_path, 0, {}),
    ):
        pass


def test_an_unknown_sink_is_refused_and_sinks_are_no_part_of_the_digest(tables: dict[str, Any]) -> None:
    told = from_dict(tables | {"log": {"sinks": ["wandb", "tensorboard"]}})
    assert told.digest == from_dict(tables).digest and told.log.sinks == ("wandb", "tensorboard")
    with pytest.raises(ConfigError, match=r"log.sinks: 'mlflow' is not possible; it must be of tensorboard, wandb"):
        from_dict(tables | {"log": {"sinks": ["mlflow"]}})


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_though_a_run_resumed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tell("tensorboard", tmp_path, 0, 1, 2, 3, 4)
    tell("tensorboard", tmp_path, 2, 3, 4, 5)
    assert events(tmp_path) == [(step, pytest.approx(1 / step)) for step in range(1, 6)]


@pytest.mark.slow
def test_weights_and_biases_keep_each_step_once_and_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell("wandb", tmp_path, 0, 1, 2, 3, 4)
    first = json.loads((tmp_path / "wandb.json").read_text("utf-8"))
    tell("wandb", tmp_path, 2, 3, 4, 5)
    again = json.loads((tmp_path / "wandb.json").read_text("utf-8"))
    assert first["id"] == again["id"] and (first["step"], again["step"]) == (4, 5)
    assert rows(tmp_path) == [(step, pytest.approx(1 / step)) for step in range(1, 6)]


@pytest.mark.slow
def test_a_run_tells_tensorboard_what_its_log_says(tables: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tables["schedule"] |= {"steps": 3, "warmup_steps": 1, "decay_steps": 1}
    tables["data"]["held_out"] = ""
    try:
        assert train(from_dict(tables | {"log": {"sinks": ["tensorboard"]}}), tmp_path / "run", silent).finished
    finally:
        torch.use_deterministic_algorithms(False)
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text("utf-8").splitlines()]
    assert events(tmp_path / "run") == [(line["step"], pytest.approx(line["loss"])) for line in lines]
