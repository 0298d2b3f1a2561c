"""`puna eval` as people call it: suites, folders, documents, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.cli import main
from puna.errors import ConfigError
from puna.eval import own
from puna.eval.run import Settings
from puna.eval.suite import SUITES, read_suite, tasks_named
from puna.records import RESULTS, read_evaluations
from tests.eval.test_run import SLICES
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("cli") / "tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two subjects of MMLU with questions of our own, short enough for a tiny context."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mmlu").mkdir()

    def rows(n: int) -> str:
        row = {"question": "One and one?", "choices": ["1", "2", "3", "4"], "answer": 1}
        return "".join(
            json.dumps({**row, "subject": subject}) + "\n" for subject in ("sums", "logic") for _ in range(n)
        )

    (folder / "mmlu" / "test.jsonl").write_text(rows(3))
    (folder / "mmlu" / "dev.jsonl").write_text(rows(1))
    return str(folder)


def test_suite_of_the_card_has_every_row_of_it() -> None:
    assert len(SUITES["card"]) == 20 and set(SUITES["card"]) == {*SUITES["base"], *SUITES["chat"]}


def test_suite_is_read_from_a_file_and_options_go_first(tmp_path: Path) -> None:
    path = tmp_path / "quick.toml"
    path.write_text('tasks = ["mmlu", "mgsm"]\nlimit = 50\nseed = 3\n')
    suite = read_suite(str(path), Settings(limit=7))
    assert [task.name for task in suite.tasks] == ["mmlu", "mgsm"] and suite.is_named
    assert (suite.settings.limit, suite.settings.seed) == (7, 3)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("eval-*.toml")), ids=lambda p: p.stem
)
def test_shipped_suites_name_tasks(path: Path) -> None:
    assert read_suite(str(path), Settings()).tasks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = 3", "has `tasks`, a list of names"),
        ('tasks = ["mmlu"]\nlimits = 3', "of limit, max_new_tokens, seed what it likes"),
        ('tasks = ["mmlu"]\nlimit = "3"', "limit are whole numbers"),
        ('tasks = ["nmlu"]', r"names 'nmlu': there is no such task; the tasks are .*chartqa,"),
        ("tasks", "is not TOML"),
    ],
)
def test_broken_suite_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_suite(str(tmp_path / "s.toml"), Settings())


@pytest.mark.parametrize(("task", "module"), [("mtob_half_ek", "sacrebleu.metrics"), ("math_maj4", "math_verify")])
def test_what_cannot_be_judged_is_refused_before_anything_is_asked(
    model: str, data: str, task: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(["eval", model, "--task", f"mmlu,{task}", "--data", data]) == 2
    out = capsys.readouterr()
    assert "install it with: pip install 'puna[eval]'" in out.err and not out.out


def test_unknown_suite_and_task_name_what_there_is() -> None:
    with pytest.raises(ConfigError, match="give one of card, base, chat, or a file"):
        read_suite("cards", Settings())
    with pytest.raises(ConfigError, match="names 'x': there is no such task"):
        tasks_named("mmlu, x")


def test_majority_of_samples_is_a_task_by_its_name() -> None:
    (task,) = tasks_named("math_maj16")
    assert (task.samples, task.metric, task.vote is not None, task.temperature) == (16, "em_maj1@16", True, 0.6)


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_command_runs_goes_on_and_writes_what_others_read(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["eval", model, "--task", "mmlu", "--data", data, "--out", str(out), "--device", "cpu"]
    assert main([*command, "--limit", "2", "--json"]) == 0
    first = document(capsys)["mmlu"]
    assert {"score", "stderr", "n", "unscored"} <= first.keys() and first["n"] == 2
    assert [item["id"] for item in first["items"]] == ["sums/0", "logic/0"]
    assert all({"id", "answer", "correct"} <= item.keys() for item in first["items"])
    assert main(command) == 0
    said = capsys.readouterr()
    assert "mmlu: 2 of 6 items are there already" in said.err
    assert "| MMLU | 5 | macro_avg/acc_char |" in said.out and "| 79.3 | 85.2 | 79.6 | 85.5 |" in said.out
    assert "not comparable [1]" in said.out and "1. 6 of 14,042 items" in said.out
    (record,) = read_evaluations(out / RESULTS)
    assert (record.task, record.n, record.published["Llama 4 Scout"]) == ("mmlu", 6, "79.6")
    assert len(record.model_hash) == 16 and record.settings["limit"] is None
    assert {"report.md", "report.html", "mmlu.html", "mmlu.jsonl", "run.json"} <= {path.name for path in out.iterdir()}


def test_folder_keeps_what_earlier_commands_found(
    model: str, data: str, stand_ins: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--data", data, "--data", str(stand_ins["mgsm"])]
    command = ["eval", model, *folders, "--out", str(tmp_path), "--limit", "1", "--device", "cpu"]
    assert main([*command, "--task", "mmlu"]) == 0
    assert main([*command, "--task", "mgsm", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])) == ["mgsm"]
    assert [each.task for each in read_evaluations(tmp_path / RESULTS)] == ["mmlu", "mgsm"]
    assert "| MMLU |" in (tmp_path / "report.md").read_text() and "mgsm.html" in (tmp_path / "report.html").read_text()


def test_recorded_answers_are_scored_without_a_model(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "responses.jsonl"
    given = {"sums/0": "B", "sums/1": "The best answer is A.", "logic/0": "", "logic/2": "B"}
    path.write_text("".join(json.dumps({"id": id_, "response": text}) + "\n" for id_, text in given.items()))
    command = ["eval", "--task", "mmlu", "--data", data, "--responses", str(path)]
    assert main([*command, "--json"]) == 0
    found = document(capsys)["mmlu"]
    assert (found["score"], found["n"], found["unscored"], found["missing"]) == (0.5, 4, 0, 2)
    assert [item["correct"] for item in found["items"]] == [True, False, False, True]
    assert main([*command, "--limit", "2", "--json"]) == 0
    assert [item["id"] for item in document(capsys)["mmlu"]["items"]] == ["sums/0", "logic/0"]
    assert main(command) == 0 and "| MMLU |" in capsys.readouterr().out


def test_two_runs_are_compared(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        assert main(["eval", model, "--task", "mmlu", "--data", data, "--out", str(run), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["eval", "--compare", *map(str, runs), "--json"]) == 0
    found = document(capsys)["mmlu"]
    assert (found["n"], found["difference"], found["p"], found["test"]) == (6, 0.0, 1.0, "sign flips")
    assert main(["eval", "--compare", str(tmp_path), str(runs[0])]) == 2
    assert "is no run's folder" in capsys.readouterr().err


def test_row_without_data_runs_on_stand_ins_and_says_so(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["eval", model, "--suite", "card", "--data", data, "--limit", "1", "--out", str(out), "--device", "cpu"]
    assert main([*command, "--max-new-tokens", "2", "--json"]) == 0
    found = document(capsys)
    assert list(found) == list(SUITES["card"])
    assert found["mmlu"]["n"] == 1 and found["docvqa_base"]["data"] == "own stand-ins"
    assert "stand-ins of our own" in " ".join(found["docvqa_base"]["differences"])
    assert "own stand-ins" not in found["mmlu"]["data"] and "has no mgsm/test.jsonl" in found["mgsm"]["differences"][0]
    assert all(each["n"] + each["unscored"] == 1 for each in found.values())
    assert found["docvqa_test"]["unscored"] == 1
    submission = json.loads((out / "docvqa_test.submission.json").read_text("utf-8"))
    assert [sorted(answer) for answer in submission] == [["answer", "questionId"]]
    assert "at most 2 tokens instead of 512" in " ".join(found["docvqa_base"]["differences"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mgsm"], "has no mgsm/test.jsonl"),
        (["--task", "mmlu", "--limit", "0"], "--limit is 0: give 1 or more"),
        (["--task", "mmlu", "--batch", "0"], "--batch is 0: give 1 or more"),
        (["--task", "nmlu"], "there is no such task"),
        (["--task", "held_out", "--data", "x"], "held_out needs one folder"),
    ],
)
def test_what_cannot_run_is_one_line_that_says_what_to_do(
    model: str, data: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["eval", model, "--data", data, *out, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_stand_ins_are_always_the_same(stand_ins: dict[str, Path], tmp_path: Path) -> None:
    one, two = stand_ins["mmlu"], own.write(tmp_path)["mmlu"]
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) > 80 and all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert set(SUITES["card"]) <= set(stand_ins)


@pytest.mark.slow
def test_card_runs_from_end_to_end_on_cria(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    command = [
        "eval",
        "cria",
        "--suite",
        "card",
        "--limit",
        "20",
        "--data",
        str(SLICES),
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main(command) == 0
    found = document(capsys)
    assert list(found) == list(SUITES["card"])
    assert all(each["n"] > 0 for name, each in found.items() if name != "docvqa_test")
    assert all(
        each["at_chance"] or each["score"] > each["chance"] for name, each in found.items() if name != "docvqa_test"
    )
