"""Reports: what stands beside a value, and that the card's columns are the card's."""

from dataclasses import replace
from typing import Any

import pytest

from puna.eval.published import COLUMNS, ROW_OF, ROWS
from puna.eval.report import markdown, page, tables
from puna.eval.result import Circumstances, evaluation, files_hash
from puna.eval.run import Settings
from puna.eval.task import Item, Judged, Score, summarize
from puna.eval.tasks import BASE, CHAT, TASKS
from puna.records import Evaluation, read_evaluations, write_evaluations

HERE = Circumstances(
    model="cria", model_hash="0123", date="2026-01-02T03:04:05+00:00", settings={"limit": None, "seed": 0}
)


def judged(values: list[float | None], **more: Any) -> list[Judged]:
    made = []
    for i, value in enumerate(values):
        score = Score(value=value, answer=None, reason="")
        made.append(Judged(item=Item(id=str(i), row={}, group="", **more), responses=("x",), score=score))
    return made


def record(name: str, values: list[float | None], *, data: str = "folder eval", **more: Any) -> Evaluation:
    task = replace(TASKS[name], summary=None)
    return evaluation(task, summarize(task, judged(values, **more)), settings=Settings(), circumstances=HERE, data=data)


def remarks(each: Evaluation) -> tuple[str, tuple[str, ...]]:
    """The last cell of its row, and the notes below."""
    (table,) = tables([each])
    return table.rows[0][-1], table.notes


def test_every_row_of_the_card_is_a_task_with_its_shots_and_metric() -> None:
    assert {task.name for task in (*BASE, *CHAT)} == set(ROW_OF)
    for name, row in ROW_OF.items():
        assert row.shots in (str(TASKS[name].shots), "-"), name
        assert TASKS[name].metric.startswith(row.metric), name
    assert len(ROWS) == 18 and all(len(COLUMNS[row.table]) == len(row.values) == 4 for row in ROWS)


def test_value_stands_between_its_metric_and_the_cards_columns() -> None:
    (table,) = tables([record("mmlu", [1.0, 1.0, 1.0, 0.0] * 25)])
    assert table.head[3:7] == ("Metric", "cria", "95 %", "n")
    assert table.rows[0][:5] == ("Reasoning & Knowledge", "MMLU", "5", "macro_avg/acc_char", "75.0")
    assert table.rows[0][5:] == (
        "65.6..82.5",
        "100",
        "79.3",
        "85.2",
        "79.6",
        "85.5",
        "not comparable [1]",
    )
    assert table.notes == ("100 of 14,042 items",)


def test_whole_set_from_the_hub_is_comparable() -> None:
    assert remarks(record("gpqa_diamond", [1.0] * 150 + [0.0] * 48, data="hub")) == ("", ())


def test_chance_is_named_where_it_is_not_excluded() -> None:
    assert record("mmlu", [1.0] + [0.0] * 3).at_chance
    assert not record("mmlu", [1.0] * 30 + [0.0] * 10).at_chance
    assert record("mbpp", [0.0] * 20).at_chance and not record("mbpp", [1.0] + [0.0] * 19).at_chance
    assert remarks(record("mbpp", [0.0] * 20))[0] == "at chance, not comparable [1]"


def test_what_was_not_scored_differs_or_is_inferred_is_said() -> None:
    said = remarks(record("tydiqa", [0.5, None], note="the passages are cut"))
    assert said[0] == "1 unscored, not comparable [1] [2], see [3]"
    inferred = "asked without the passage, which is inferred from the card's values"
    assert said[1] == ("2 of 5,077 items", "the passages are cut", inferred)


def test_settings_are_those_that_the_task_was_run_with() -> None:
    task = TASKS["mbpp"]
    short = Settings(max_new_tokens=9)
    found = evaluation(task, summarize(task, judged([1.0])), settings=short, circumstances=HERE, data="hub")
    assert found.settings == {"limit": None, "seed": 0, "max_new_tokens": 9, "temperature": 0.0, "samples": 1}
    assert "answers of at most 9 tokens instead of 256" in found.differences


def test_two_tasks_of_one_row_stand_behind_one_another() -> None:
    (table,) = tables([record("mtob_half_ek", [0.4, 0.6]), record("mtob_half_ke", [0.2, 0.4])])
    assert len(table.rows) == 1 and table.rows[0][4] == "50.0/30.0" and table.rows[0][9] == "42.2/36.6"
    assert record("mtob_half_ke", [0.1]).published == {"Llama 4 Scout": "36.6", "Llama 4 Maverick": "46.4"}
    (table,) = tables([record("mtob_half_ke", [0.2, 0.4])])
    assert table.rows[0][-1].startswith("mtob_half_ke only, ")


def test_task_beside_the_card_is_shown_in_its_unit() -> None:
    task = replace(TASKS["mmlu_cot"], unit="bits per byte", macro=False)
    other = evaluation(task, summarize(task, judged([1.5, 2.5])), settings=Settings(), circumstances=HERE, data="hub")
    (table,) = tables([other])
    assert table.rows[0][2:5] == ("macro_avg/acc, bits per byte", "2", "1.02..2.98")


def test_row_that_did_not_run_says_why() -> None:
    missing = evaluation(TASKS["mgsm"], None, settings=Settings(), circumstances=HERE, data="", problem="no mgsm here")
    (table,) = tables([missing])
    assert (
        table.rows[0][4:7] == ("–", "–", "0")
        and table.rows[0][-1].startswith("[1]")
        and table.notes[0] == "no mgsm here"
    )


def test_page_needs_nothing_else_and_runs_nothing_that_a_name_contains() -> None:
    text = page([replace(record("mmlu", [1.0, 0.0]), model="<script>x</script>")], ["mmlu"])
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "http" not in text and '<a href="mmlu.html">' in text and "2026-01-02" in text and "0123" in text


def test_markdown_keeps_to_its_columns() -> None:
    text = markdown([replace(record("mmlu", [1.0, 0.0]), model="a|b")])
    assert "a\\|b" in text and "files 0123" in text


def test_records_are_read_as_they_were_written(tmp_path: Any) -> None:
    records = (record("mmlu", [1.0, 0.0]), record("mbpp", [None]))
    (tmp_path / "results.json").write_text(write_evaluations(records), "utf-8")
    assert read_evaluations(tmp_path / "results.json") == records


def test_hash_of_files_follows_their_content_and_not_their_place(tmp_path: Any) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"1234")
        (tmp_path / folder / "notes.txt").write_text(folder)
    assert files_hash(tmp_path / "a") == files_hash(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"1235")
    assert files_hash(tmp_path / "a") != files_hash(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "[]", '{"evaluations": [{"task": "x"}]}'])
def test_broken_results_are_refused(tmp_path: Any, content: str) -> None:
    from puna.errors import ConfigError

    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match="is no file of results"):
        read_evaluations(tmp_path / "results.json")
