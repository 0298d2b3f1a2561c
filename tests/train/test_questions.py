"""Tests of puna.train.questions: twelve languages, answers that follow from the facts, text in NFC."""

import unicodedata
from collections.abc import Iterator
from random import Random

import pytest
from PIL import Image

from puna.train import questions
from puna.train.drawings import COLORS, SHAPES, Chart, Receipt, draw_scene
from puna.train.questions import LANGUAGES

NAMES = {language: f"name-{language}" for language in LANGUAGES}


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in value:
            yield from strings(value[key])
    elif isinstance(value, tuple):
        for part in value:
            yield from strings(part)


def tables() -> list[dict[str, object]]:
    return [value for name, value in vars(questions).items() if name.isupper() and isinstance(value, dict)]


def test_all_wordings_are_in_nfc() -> None:
    for table in [*tables(), questions.WHAT_IS_THIS]:
        for text in strings(table):
            assert text == unicodedata.normalize("NFC", text)
            assert text == text.strip()


def test_every_table_speaks_all_twelve_languages() -> None:
    for table in (questions.WHAT_KIND, questions.WHAT_COLOR, questions.HOW_DO_YOU_SAY, questions.SMALL_TALK):
        assert set(table) == set(LANGUAGES)
    for table in (questions.KINDS, questions.COLOR_WORDS, questions.THE_SHAPES, questions.LANGUAGE_NAMES):
        for row in table.values():
            assert set(row) == set(LANGUAGES)


def test_every_drawn_color_and_shape_has_words() -> None:
    assert set(questions.COLOR_WORDS) == set(COLORS)
    assert set(questions.THE_SHAPES) == set(SHAPES)


def test_names_are_asked_in_the_language_they_are_answered_in() -> None:
    for turn in questions.name_turns(Random(0), NAMES, LANGUAGES):
        assert turn.answer == f"name-{turn.language}"
        assert turn.question in {wording[turn.language] for wording in questions.WHAT_IS_THIS}


@pytest.mark.parametrize("source", LANGUAGES)
def test_word_and_sentence_questions_leave_no_place_unfilled(source: str) -> None:
    for target in LANGUAGES:
        for turn in (questions.word_turn(NAMES, source, target), questions.sentence_turn("a", "b", source, target)):
            assert "{" not in turn.question
            assert questions.LANGUAGE_NAMES[source][target] in turn.question


def test_scene_answers_follow_from_the_figures() -> None:
    for seed in range(60):
        rng = Random(seed)
        scene = draw_scene(rng, n_figures=rng.randint(1, 4), arrangement="row")
        kinds = [f"{figure.color} {figure.shape}" for figure in scene.figures]
        for turn in questions.scene_turns(rng, scene):
            if turn.question.startswith("What is left of the "):
                right = turn.question.removeprefix("What is left of the ").removesuffix("?")
                assert kinds.index(turn.answer) + 1 == kinds.index(right)
            if turn.question == "How many shapes are there?":
                assert turn.answer == str(len(kinds))
            if turn.question.startswith("What color is the "):
                shape = turn.question.removeprefix("What color is the ").removesuffix("?")
                assert f"{turn.answer} {shape}" in kinds


def test_chart_answers_follow_from_the_values() -> None:
    chart = Chart(
        image=Image.new("RGB", (1, 1)),
        kind="bar",
        labels=("A", "B", "C"),
        colors=("red", "blue", "green"),
        values=(2, 9, 1),
    )
    answers = {turn.question: turn.answer for seed in range(200) for turn in questions.chart_turns(Random(seed), chart)}
    assert answers["Which bar is the highest?"] == "B"
    assert answers["Which bar is the lowest?"] == "C"
    assert answers["How many bars are there?"] == "3"
    assert answers["What is the value of A?"] == "2"
    assert answers["Which bar is green?"] == "C"
    assert answers["Welchen Wert hat B?"] == "9"


def test_receipt_answers_are_total_and_price() -> None:
    receipt = Receipt(image=Image.new("RGB", (1, 1)), items=(("tea", 3), ("egg", 5)))
    total, price = questions.receipt_turns(Random(0), receipt)
    assert total.answer == "8"
    assert price.answer == {"How much is the tea?": "3", "How much is the egg?": "5"}[price.question]


def test_sums_are_right_and_never_negative() -> None:
    for seed in range(100):
        turn = questions.sum_turn(Random(seed), "en")
        written = turn.question.removeprefix("How much is ").removesuffix("?")
        first, sign, second = written.split(" ")
        assert int(turn.answer) == int(first) + int(second) * (1 if sign == "+" else -1) >= 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_small_talk_gives_different_questions(language: str) -> None:
    turns = questions.talk_turns(Random(0), language, 4)
    assert len({turn.answer for turn in turns}) == len(turns) == 4
