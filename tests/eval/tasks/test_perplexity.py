"""Bits per byte and perplexity: of all texts together, from the likelihoods that a model gives."""

import json
import math
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.eval.task import Likelihood, Passage, score_responses
from puna.eval.tasks.perplexity import BITS_PER_BYTE, PERPLEXITY


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "puna.txt").write_text("Vicuñas", "utf-8")
    lines = [{"text": "wool"}, {"text": " \n"}, {"page": "salt flats"}]
    (tmp_path / "texts" / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return tmp_path


def test_values_are_those_of_all_texts_together(data: Path) -> None:
    items = list(BITS_PER_BYTE.items(data))
    assert [(item.id, item.row["text"]) for item in items] == [
        ("puna.txt", "Vicuñas"),
        ("0", "wool"),
        ("2", "salt flats"),
    ]
    assert BITS_PER_BYTE.prompt(items[0]) == Passage(text="Vicuñas")
    nats = {"puna.txt": (-8.0, 4), "0": (-2.0, 2), "2": (-6.0, 4)}
    responses = {id: [Likelihood(logprob, n).write()] for id, (logprob, n) in nats.items()}
    bits, perplexity = (score_responses(task, responses, data) for task in (BITS_PER_BYTE, PERPLEXITY))
    assert bits.score == pytest.approx(16 / math.log(2) / (8 + 4 + 10)) and bits.unit == "bits per byte"
    assert perplexity.score == pytest.approx(math.exp(16 / 10)) and perplexity.n == 3
    assert bits.stderr is not None and perplexity.stderr is not None
    assert [judged.score.value for judged in perplexity.judged] == pytest.approx([math.exp(2), math.e, math.exp(1.5)])
    assert [item["correct"] for item in bits.to_json()["items"]] == [None] * 3


def test_certainty_costs_nothing_and_no_likelihood_is_no_score(data: Path) -> None:
    ids = [item.id for item in BITS_PER_BYTE.items(data)]
    certain = {id: [BITS_PER_BYTE.gold(item)] for id, item in zip(ids, BITS_PER_BYTE.items(data), strict=True)}
    assert score_responses(BITS_PER_BYTE, certain, data).score == 0.0
    assert score_responses(PERPLEXITY, certain, data).score == 1.0
    empty = score_responses(PERPLEXITY, {id: [""] for id in ids}, data)
    assert (empty.score, empty.n, empty.unscored) == (None, 0, 3)


def test_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="texts"):
        list(PERPLEXITY.items(tmp_path))
