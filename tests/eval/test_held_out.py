"""Measuring on held-out documents: what is counted, and that nothing of the answer is shown."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from puna.chat import Assistant, load
from puna.errors import ConfigError
from puna.eval.held_out import matches, measure
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    picture = {"type": "image", "path": "red.png"}

    def question(language: str, answer: str) -> dict[str, Any]:
        asked = {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}
        reply = {"role": "assistant", "content": answer}
        return {"id": language, "language": language, "set": "names", "messages": [asked, reply], "answer": [answer]}

    lines: list[dict[str, Any]] = [question("en", "red"), question("de", "rot"), question("de", "rot")]
    content = [picture, {"type": "text", "text": "A red día."}]
    lines.append({"id": "t", "language": "en", "set": "stories", "content": content})
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_questions_are_counted_by_set_and_language(assistant: Assistant, documents: Path) -> None:
    record = measure(assistant, documents, limit=None, progress=lambda line: None)
    assert {language: e.n for language, e in record.exactness["names"].items()} == {"en": 1, "de": 2, "all": 3}
    assert len(record.items) == 3
    shown = record.to_json()
    assert set(shown["exactness"]["names"]["all"]) >= {"score", "stderr", "score_without_picture", "n"}


def test_bits_per_byte_is_the_models_own_likelihood_of_the_text(assistant: Assistant, documents: Path) -> None:
    record = measure(assistant, documents, limit=None, progress=lambda line: None)
    text = "A red día."
    measured = record.compression["stories"]["en"]
    assert measured.n_bytes == len(text.encode()) == 11
    prompt = assistant.text_prompt(text)
    logprobs = assistant.logits(prompt.ids).log_softmax(-1)
    bits = -sum(float(logprobs[i, prompt.ids[i + 1]]) for i in range(11)) / math.log(2)
    assert measured.bits_without_picture == pytest.approx(bits, rel=1e-5)
    assert measured.bits != measured.bits_without_picture


def test_limit_takes_that_many_of_each_set_and_language(assistant: Assistant, documents: Path) -> None:
    record = measure(assistant, documents, limit=1, progress=lambda line: None)
    assert {language: e.n for language, e in record.exactness["names"].items()} == {"en": 1, "de": 1, "all": 2}


@pytest.mark.parametrize(
    ("answer", "right"), [("Red", True), (" red.\n", True), ("red apple", False), ("", False), ("rojo", True)]
)
def test_an_answer_matches_but_for_case_and_space(answer: str, right: bool) -> None:
    assert matches(answer, ["red", "rojo"]) is right


def test_missing_and_damaged_files_are_refused_by_name(assistant: Assistant, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        measure(assistant, tmp_path / "none.jsonl", limit=None, progress=lambda line: None)
    (tmp_path / "bad.jsonl").write_text('{"set": "a"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        measure(assistant, tmp_path / "bad.jsonl", limit=None, progress=lambda line: None)
