"""ChartQA: both publications' fields, whose questions are whose, and what the measure is known to get wrong."""

import json
from pathlib import Path

import pytest

from puna.eval.task import Item
from puna.eval.tasks.chartqa import CHARTQA, CHARTQA_BASE


def test_fields_of_either_publication_are_read(tmp_path: Path) -> None:
    rows = [
        {"query": "How many?", "label": ["12"], "human_or_machine": 0, "image": "a.png", "imgname": "a.png"},
        {"question": "How many?", "answer": "12", "type": "human_test", "image": "b.png"},
        {"question": "How much?", "answer": "3.5", "type": "augmented_test", "image": "b.png"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    items = list(CHARTQA.items(tmp_path))
    assert [(item.id, item.group, item.cluster) for item in items] == [
        ("a/0", "human", "a.png"),
        ("chart/0", "human", ""),
        ("chart/1", "augmented", ""),
    ]
    assert "How much?" in str(CHARTQA.prompt(items[2])) and CHARTQA.score(items[2], "FINAL ANSWER: $3.5").value == 1


@pytest.mark.parametrize(
    ("label", "answer", "right"),
    [("2011", "2014", 1), ("0", "0.01", 0), ("0", "0.0", 1), ("14", '"14"', 1), ("14%", "0.14", 1), ("Yes", "yes", 1)],
)
def test_flaws_of_the_measure_are_kept_as_named(label: str, answer: str, right: int) -> None:
    item = Item(id="x", row={"label": [label]})
    assert CHARTQA.score(item, f"Step 1.\nFINAL ANSWER: {answer}").value == right
    assert CHARTQA_BASE.score(item, f" {answer}\nQuestion:").value == right
