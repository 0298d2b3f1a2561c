"""TyDi QA: without the passage as the card seems to ask, or with it; the mean over languages."""

import json
from pathlib import Path

import pytest

from puna.eval.task import Completion, score_responses
from puna.eval.tasks.tydiqa import TYDIQA, TYDIQA_GOLD


def row(id: str, answer: str) -> dict[str, object]:
    return {
        "id": id,
        "title": "Llama",
        "context": f"The passage says {answer}.",
        "question": "How?",
        "answers": {"text": [answer]},
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tests = [row("english-1", "wool"), row("english-2", "salt"), row("finnish-1", "villa"), row("thai-1", "x")]
    shots = [row("english-9", "rope"), row("finnish-9", "köysi"), row("english-8", "no")]
    for name, rows in (("validation", tests), ("exemplars", shots)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    return tmp_path


def test_closed_book_hides_the_passage_and_gold_shows_it(data: Path) -> None:
    item = next(iter(TYDIQA.items(data)))
    assert TYDIQA.prompt(item) == Completion(
        text="Question: How?\nAnswer: rope\n\nQuestion: How?\nAnswer:", stops=("\n",)
    )
    whole = TYDIQA_GOLD.prompt(item)
    assert isinstance(whole, Completion)
    assert whole.text.endswith("Passage: The passage says wool.\nQuestion: How?\nAnswer:")


def test_value_is_the_mean_of_the_languages(data: Path) -> None:
    responses = {"english-1": ["The wool!"], "english-2": ["salt flat"], "finnish-1": ["no"], "thai-1": ["x\nmore"]}
    report = score_responses(TYDIQA, responses, data)
    assert report.score == pytest.approx(((1 + 2 / 3) / 2 + 0 + 1) / 3)
    assert set(report.groups) == {"english", "finnish", "thai"}
