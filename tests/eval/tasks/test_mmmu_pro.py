"""MMMU-Pro: ten letters, both settings, their mean."""

import json
from pathlib import Path

import pytest

from puna.eval.task import score_responses
from puna.eval.tasks.mmmu_pro import MMMU_PRO, MMMU_PRO_STANDARD, MMMU_PRO_VISION

OPTIONS = str([f"option {i}" for i in range(10)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    standard = {"id": "q1", "question": "See <image 1>. Which?", "options": OPTIONS, "answer": "J", "image_1": "a.png"}
    vision = {"id": "q1", "options": OPTIONS, "answer": "J", "image": "b.png"}
    (tmp_path / "standard_10_options.jsonl").write_text(json.dumps(standard) + "\n", "utf-8")
    (tmp_path / "vision.jsonl").write_text(json.dumps(vision) + "\n", "utf-8")
    return tmp_path


def test_letters_go_to_j_and_all_ten_options_are_shown(data: Path) -> None:
    (item,) = MMMU_PRO_STANDARD.items(data)
    prompt = str(MMMU_PRO_STANDARD.prompt(item))
    assert "(I) option 8." in prompt and "(J) option 9." in prompt and "<image 1>" not in prompt
    assert MMMU_PRO_STANDARD.score(item, "So.\nThe best answer is J.").value == 1  # Meta's open code stops at H
    assert MMMU_PRO_STANDARD.score(item, "The best answer is I.").value == 0


def test_value_is_the_mean_of_both_settings(data: Path) -> None:
    report = score_responses(MMMU_PRO, {"standard/q1": ["Answer: J"], "vision/q1": ["Answer: A"]}, data)
    assert report.score == 0.5
    assert {name: estimate.value for name, estimate in report.groups.items()} == {"standard": 1.0, "vision": 0.0}
    assert [item.cluster for item in MMMU_PRO.items(data)] == ["q1", "q1"]
    (seen,) = MMMU_PRO_VISION.items(data)
    assert "extract the question from the image" in str(MMMU_PRO_VISION.prompt(seen))
