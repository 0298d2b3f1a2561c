"""What a machine is told about itself: findings with remedies, models that fit, and no error whatever is missing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna import doctor, host
from puna.cli import main
from puna.host import Gpu
from puna.presets import CRIA, MAVERICK, SCOUT
from puna.weights import hub

HERE = replace(host.describe(), gpus=())


def test_the_command_prints_one_document_and_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "puna", "doctor", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[-2000:]
    document = json.loads(run.stdout)
    assert {"host", "free_memory_bytes", "free_disk_bytes", "findings", "fits"} == set(document)
    assert {each["area"] for each in document["findings"]} == {"fast paths", "extras", "assets", "energy"}
    assert [each["model"] for each in document["fits"]] == ["scout", "maverick", "guard4", "cria"]
    assert all(each["remedy"] for each in document["findings"] if each["state"] in {"missing", "broken"})
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & {"torch", "numpy", "PIL"}


def test_people_read_marks_and_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("processor ") and "\n  + cria, the model that ships, is whole\n" in said
    assert "\n  + cria      bf16    31.3 MB in " in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json cannot be read"),
        ("tokenizer.json", None, "tokenizer.json cannot be read"),
        ("model.safetensors", b"", "model.safetensors cannot be read"),
        ("model.safetensors", b"half", "model.safetensors lacks"),
    ],
)
def test_a_damaged_model_is_told(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    whole = hub.resolve("cria")
    for each in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / each).symlink_to(whole / each)
    assert doctor._checkpoint_problem(tmp_path) == ""
    (tmp_path / name).unlink()
    if content is not None:
        with (whole / name).open("rb") as file:
            (tmp_path / name).write_bytes(file.read(10**6) if content == b"half" else content)
    assert said in doctor._checkpoint_problem(tmp_path)


def test_models_fit_on_a_gpu_before_memory_and_small_before_not_at_all() -> None:
    h100 = replace(HERE, gpus=(Gpu(name="H100", memory_bytes=80_000_000_000),))
    scout = doctor._fit("scout", SCOUT, h100, 10**9, 10**9)
    assert (scout.numbers, scout.where, scout.tokens) == ("int4", "H100", 213_216)
    assert doctor._fit("scout", SCOUT, HERE, 512 * 10**9, 0).numbers == "bf16"
    assert doctor._fit("cria", CRIA, HERE, 10**9, 0).how == "puna chat"


def test_experts_go_to_disk_where_memory_is_short_and_disk_is_not() -> None:
    away = doctor._fit("maverick", MAVERICK, HERE, 64 * 10**9, 10**12)
    assert away.where == "memory and on disk" and "--offload disk" in away.how and away.tokens > 0
    assert "of disk" in doctor._fit("maverick", MAVERICK, HERE, 64 * 10**9, 10**9).where
    assert not doctor._fit("maverick", MAVERICK, HERE, 10**9, 10**12).numbers
    assert not doctor._fit("cria", CRIA, HERE, None, 10**12).numbers
