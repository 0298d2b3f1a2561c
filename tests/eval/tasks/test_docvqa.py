"""DocVQA's record format, on a page of our own: scores, hidden answers, the submission file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from puna.eval.task import score_responses
from puna.eval.tasks.docvqa import DOCVQA, DOCVQA_BASE, DOCVQA_TEST, submission

ROW = {"questionId": "7", "docId": 1, "question": "Who signs?", "image": "images/page.png", "answers": ["A. Mamani"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "page.png")
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROW) + "\n", "utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps({**ROW, "answers": None}) + "\n", "utf-8")
    return tmp_path


@pytest.mark.parametrize("task", [DOCVQA, DOCVQA_BASE])
def test_gold_is_right_close_is_close_and_empty_is_wrong(task: object, data: Path) -> None:
    assert task is DOCVQA or task is DOCVQA_BASE
    assert score_responses(task, {"7": ["a. mamani"]}, data).score == 1.0
    assert score_responses(task, {"7": ["A. Maman"]}, data).score == pytest.approx(8 / 9)
    assert score_responses(task, {"7": [""]}, data).score == 0.0
    assert str(data / "images" / "page.png") in str(task.prompt(next(iter(task.items(data)))))


def test_hidden_answers_cannot_be_scored_and_are_submitted(data: Path) -> None:
    report = score_responses(DOCVQA_TEST, {"7": [" A. Mamani"]}, data)
    assert (report.score, report.n, report.unscored) == (None, 0, 1)
    assert submission({"7": [" A. Mamani"]}) == [{"questionId": 7, "answer": "A. Mamani"}]
