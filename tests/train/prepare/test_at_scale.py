import gzip
import importlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from puna.errors import ConfigError, DeviceError
from puna.train.prepare.run import QUARANTINE, Settings, prepare

DRAW = Random(8)
VOCABULARY = ["".join(DRAW.choices("abcdefghijklm", k=DRAW.randint(3, 9))) for _ in range(2000)] + ["the", "of"] * 300
QUESTION = "Which of these rivers did the traders of the old kingdom cross on their way to the salt lakes?"


def text(n: int = 80) -> str:
    return " ".join(DRAW.choices(VOCABULARY, k=n))


GOOD = [text() for _ in range(12)]
BAD = [
    GOOD[1].upper(),
    f"{GOOD[2]} and more",
    "too short",
    f"{text()} {QUESTION} {text()}",
    f"{text()} purple elephant {text()}",
]
FILES = {"a": GOOD[:4], "b": BAD[:1], "c": GOOD[4:8] + BAD[1:], "d": [*GOOD[8:], GOOD[0]]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "raw").mkdir()
    for name, texts in FILES.items():
        lines = "".join(json.dumps({"text": each, "id": k}) + "\n" for k, each in enumerate(texts))
        (tmp_path / "raw" / f"{name}.jsonl").write_text(lines + "{broken\n", "utf-8")
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "phrases.txt").write_text("purple elephant\n")
    against, lists = (tmp_path / "exam.jsonl",), tmp_path / "lists"
    return Settings(inputs=(tmp_path / "raw",), out=tmp_path / "out", against=against, lists=lists)


def result(folder: Path) -> list[dict[str, object]]:
    paths = [path for path in sorted(folder.glob("*.jsonl*")) if path.name != QUARANTINE]
    texts = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths]
    return [json.loads(line) for each in texts for line in each.splitlines()]


@pytest.mark.parametrize("tasks", [1, 3, 5])
def test_same_documents_stay_as_with_puna_prepare(settings: Settings, tasks: int, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    from datatrove.executor import LocalPipelineExecutor

    from puna.train.prepare.at_scale import pipelines

    for number, (pipeline, n) in enumerate(zip(pipelines(settings), (tasks, 1, tasks), strict=True)):
        logs = str(tmp_path / "logs" / str(number))
        LocalPipelineExecutor(pipeline, tasks=n, workers=1, logging_dir=logs).run()
    quarantine = "".join(path.read_text() for path in (settings.out / "quarantine").iterdir())
    assert json.loads(quarantine) == {"id": f"{tmp_path}/raw/c.jsonl:8", "list": "phrases"}
    alone = Settings(inputs=settings.inputs, out=tmp_path / "alone", against=settings.against, lists=settings.lists)
    prepare(alone, lambda line: None)
    assert result(settings.out) == result(alone.out)
    assert [each["text"] for each in result(settings.out)] == GOOD


def test_one_task_only_compares_and_only_when_all_have_signed(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    from puna.train.prepare.at_scale import Compare, Sign

    with pytest.raises(ConfigError, match="tasks=1"):
        Compare(tmp_path).run(None, 0, 2)
    list(Sign(tmp_path).run([], 0, 2))
    with pytest.raises(ConfigError, match="1 tasks have signed, of \\[2\\]"):
        Compare(tmp_path).run()


def test_without_datatrove_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    monkeypatch.delitem(sys.modules, "puna.train.prepare.at_scale", raising=False)
    with pytest.raises(DeviceError, match=r"pip install 'puna\[datatrove\]'"):
        importlib.import_module("puna.train.prepare.at_scale")


def test_documented_example_for_slurm_is_what_its_tasks_can_load(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    import dill

    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0].replace("/shared", str(tmp_path))
    names: dict[str, Any] = {}
    exec(example.removesuffix("job.run()\n"), names)  # there is no SLURM here to submit to
    job = dill.loads(dill.dumps(names["job"]))
    assert [job.tasks, job.depends.tasks, job.depends.depends.tasks] == [200, 1, 200]
    assert [step.name for step in job.depends.pipeline] == ["puna compare"]
