"""The command: documents whose parts add up, a page that draws them, refusals of one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scout_in_int4_on_one_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    found = run(capsys, "scout", "--hardware", "h100:1", "--quantize", "int4", "--out", str(page))
    assert found["fits"] and found["layout"]["world"] == 1
    (rank,) = found["ranks"]
    assert rank["total"] == sum(rank["weights"].values()) + rank["kv"] + rank["step"] + rank["reserve"]
    assert {part: n for part, n in found["weights_bytes"].items() if n} == rank["weights"]
    assert 0 < found["decode"]["tokens"] < found["decode"]["floor_tokens"]
    text = page.read_text("utf-8")
    assert "<svg" in text and "routed experts" in text and "http" not in text.replace("http-equiv", "")


def test_a_training_says_layout_speed_and_energy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    arguments = ("cria", "--hardware", "h100:4", "--task", "train", "--context", "1024", "--batch", "64")
    found = run(capsys, *arguments, "--tokens", "1e10", "--out", str(page))
    assert found["fits"] and found["layout"]["world"] == 4
    assert found["tokens_per_second"] < found["floor_tokens_per_second"]
    hours, energy = found["run"]["gpu_hours"], found["run"]
    assert energy["kwh"] == pytest.approx(hours * 0.7) and energy["location_kg"] == pytest.approx(energy["kwh"] * 0.387)
    assert "backward" in page.read_text("utf-8")


def test_qlora_of_scout_needs_less_than_the_best_published(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "scout", "--hardware", "h100", "--task", "tune", "--context", "4096")
    assert found["fits"] and found["bytes"]["device"] < 64.5e9  # axolotl's QLoRA on one H100
    assert not run(capsys, "scout", "--hardware", "h100", "--task", "tune", "--method", "lora")["fits"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scout", "--hardware", "h99"], "no such kind"),
        (["condor", "--hardware", "h100"], "neither a directory nor one of"),
        (["scout", "--hardware", "h100", "--out", "plan.pdf"], "end it in .html"),
        (["scout", "--hardware", "h100", "--batch", "0"], "--batch is 0"),
        (["scout", "--hardware", "h100:53", "--task", "train"], "cannot train this model"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert cli.main(["plan", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_people_read_why_layouts_were_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "scout", "--hardware", "h100:8"]) == 0
    text = capsys.readouterr().out
    assert "refused" in text and "its fullest rank needs" in text and "decode tok/s" in text
