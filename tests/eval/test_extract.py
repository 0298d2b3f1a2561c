"""Answers found in responses: by hand, and against the authors' parsers on recorded responses of real models."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.eval.extract import (
    best_answer,
    boxed,
    boxed_final_answer,
    final_answer,
    last_answer_part,
    last_code_block,
    mathvista_answer,
    mathvista_form,
    mgsm_number,
    minerva_answer,
    mmmu_choice,
    mmmu_open,
    mmmu_pro_choice,
    stated_letter,
    until,
)

SLICES = Path(__file__).parents[2].parent / "shared" / "data" / "eval"

# What the authors' parser finds in the 40 recorded responses of MMMU, in their order; None where it draws at random.
# For the three open questions: phrases and numbers that are among what it finds.
MMMU_PARSES: list[str | list[str | float] | None] = [
    *"DBBADDADBABBDBE",
    None,
    *"BCBDBDA",
    [0.2, 0.5, 30.0, "the bending stiffness of the beam."],
    *"ABCBBCCCA",
    [1210.0, 1970.0],
    *"BD",
    ["0 v$", 0.0],
    *"BBC",
]


def fixtures(name: str) -> list[dict[str, Any]]:
    path = SLICES / name
    if not path.exists():
        pytest.skip("needs ../shared/data/eval")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_mmmu_parser_equals_the_authors_on_recorded_responses() -> None:
    rows = fixtures("mmmu/scoring_fixtures.jsonl")
    assert len(rows) == len(MMMU_PARSES) == 40
    for row, expected in zip(rows, MMMU_PARSES, strict=True):
        if isinstance(expected, list):
            assert set(expected) <= set(mmmu_open(row["response"])), row["id"]
        else:
            assert mmmu_choice(row["response"], row["index2ans"]) == expected, row["id"]


def test_mmmu_pro_parser_equals_the_authors_on_recorded_responses() -> None:
    rows = fixtures("mmmu_pro/scoring_fixtures_cot.jsonl")
    assert len(rows) == 40
    for row in rows:
        letters = {chr(ord("A") + i): text for i, text in enumerate(eval(row["options"], {}))}
        letter = mmmu_pro_choice(row["response"], letters)
        assert (letter, letter == row["answer"]) == (row["pred_indexs"], row["if_right"]), row["id"]


def test_mathvista_forms_equal_the_authors_on_recorded_extractions() -> None:
    rows = fixtures("mathvista/scoring_fixtures.jsonl")
    assert len(rows) == 50
    for row in rows:
        form = mathvista_form(row["extraction"], row)
        assert (form, form == row["answer"]) == (row["prediction"], row["true_false"]), row["pid"]


def test_mathvista_rules_reach_the_verdicts_of_the_authors_judge() -> None:
    for row in fixtures("mathvista/scoring_fixtures.jsonl"):
        form = mathvista_form(mathvista_answer(row["response"], row), row)
        assert (form == row["answer"]) == row["true_false"], row["pid"]


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("So.\nThe best answer is B.", "B"),
        ("The best answer is (B).", "B"),  # the published grader keeps the parentheses
        ("the best answer is a matter of taste", None),  # ... and takes this for A
        ("**Answer:** C", None),
        ("Answer: **C**", "C"),
        ("Antwort: D", "D"),
        ("答案：A", "A"),
        ("الإجابة: ب", "B"),
        ("FINAL ANSWER: J", "J"),
        ("Answer: K", None),
        ("Answer: Apples", None),
        ("Answer: A. The best answer is C.", "C"),  # the earlier phrase of the list decides, not the earlier place
        ("", None),
    ],
)
def test_stated_letter_reads_many_languages(response: str, letter: str | None) -> None:
    assert stated_letter(response) == letter


def test_best_answer_takes_the_last_statement() -> None:
    assert best_answer("The best answer is A. No: the best answer is (C).") == "C"
    assert best_answer("The answer is (D).") == "D"
    assert best_answer("The answer is different") is None


def test_final_answer_is_the_first_line_behind_the_last_marker() -> None:
    assert final_answer("FINAL ANSWER: 3\nNo. **Final answer:** 14%\nthanks") == "14%"
    assert final_answer("FINAL ANSWER:\n\n Lamb ") == "Lamb"
    assert final_answer("14") is None and final_answer("FINAL ANSWER:") is None


def test_last_code_block_is_the_last_closed_one() -> None:
    assert last_code_block("a\n```python\nx = 1\n```\nb\n```\ny = 2\nz\n```") == "y = 2\nz"
    assert last_code_block("```python\nx\n```\n```python\ncut off") == "x"
    assert last_code_block("x = 1") is None


def test_boxes_balance_braces() -> None:
    assert boxed("so \\boxed{\\frac{1}{2}}, and {x}") == "\\frac{1}{2}"
    assert boxed("$\\boxed 5$") == "5"
    assert boxed("\\boxed{1") is None and boxed("none") is None
    assert boxed_final_answer("\\boxed{1} the final answer is: $\\boxed{2}$. I hope") == "2"


def test_minerva_answer_stands_between_the_sentences() -> None:
    assert minerva_answer("Final Answer: The final answer is $[2,5)$. I hope it is correct.") == "$[2,5)$"
    assert minerva_answer("Final Answer: The final answer is $24$") == "$24$"
    assert minerva_answer("It is 24.") is None


@pytest.mark.parametrize(
    ("response", "language", "number"),
    [
        ("Answer: 3\nAnswer: 1,234.00", "en", "1234"),
        ("Antwort: 18 Eier, also 18.", "de", "18"),
        ("উত্তর: ৬৯৪", "bn", "694"),
        ("答案：42。", "zh", "42"),
        ("18", "en", None),
        ("Answer: none", "en", None),
    ],
)
def test_mgsm_number_is_the_last_behind_the_prefix(response: str, language: str, number: str | None) -> None:
    assert mgsm_number(response, language) == number


def test_mmmu_choice_prefers_parentheses_then_letters_then_texts() -> None:
    options = {"A": "red", "B": "dark blue", "C": "green"}
    assert mmmu_choice("(A) no, (C)", options) == "C"
    assert mmmu_choice("It must be B here", options) == "B"
    assert mmmu_choice("I think that it is the dark blue one", options) == "B"
    assert mmmu_choice("dark blue", options) is None  # short answers are not searched for texts
    assert mmmu_choice("", options) is None


def test_mmmu_pro_choice_takes_statement_of_one_letter() -> None:
    options = {"A": "Both", "B": "None", "C": "Left"}
    assert mmmu_pro_choice("Answer: A. Both", options) == "A"  # the published parser sees A and B here
    assert mmmu_pro_choice("The best answer is C.", options) == "C"
    assert mmmu_pro_choice("So the answer is $\\boxed{B}$", options) == "B"


def test_mmmu_open_finds_phrases_and_numbers() -> None:
    meant = mmmu_open("The beam bends.\nTherefore the result is 1,464 units")
    assert 1464.0 in meant and "1,464 units" in meant


def test_cuts_end_at_the_marks() -> None:
    assert until("a[DONE]b[DONE]", ("[DONE]",)) == "a"
    assert last_answer_part("A line\nThe answer is\nB") == "The answer is\nB"
    assert last_answer_part("nothing") == "nothing"
