"""MathVista: the flaw of its grader that is kept, and a judge in the place of the rules."""

from puna.eval.task import Item
from puna.eval.tasks.mathvista import MATHVISTA, with_judge

CHOICE = {
    "question_type": "multi_choice",
    "answer_type": "text",
    "choices": ["yes", "no"],
    "answer": "no",
    "query": "?",
}
NUMBER = {"question_type": "free_form", "answer_type": "float", "precision": 1.0, "answer": "1.2", "query": "How far?"}


def test_what_is_no_choice_becomes_the_closest_one_but_nothing_stays_nothing() -> None:
    item = Item(id="1", row=CHOICE)
    refusal = MATHVISTA.score(item, "None")  # two edits from "no", more from "yes"
    assert (refusal.value, refusal.answer) == (1, "no")
    assert (MATHVISTA.score(item, "").value, MATHVISTA.score(item, "").answer) == (0, None)
    assert MATHVISTA.score(item, "The answer is (B)").value == 1 and MATHVISTA.score(item, "(A)").value == 0


def test_numbers_are_rounded_to_the_published_precision() -> None:
    item = Item(id="2", row=NUMBER)
    assert MATHVISTA.score(item, "It is 7 m. The answer is 1.24 m").value == 1
    assert MATHVISTA.score(item, "The answer is 1.26").value == 0


def test_judge_reads_the_answer_where_one_is_given() -> None:
    asked: list[tuple[str, str]] = []

    def judge(query: str, response: str) -> str:
        asked.append((query, response))
        return "1.2"

    task = with_judge(judge)
    assert task.score(Item(id="2", row=NUMBER), "a little over one").value == 1
    assert task.score(Item(id="2", row=NUMBER), "").value == 0 and asked == [("How far?", "a little over one")]


def test_hidden_answers_cannot_be_scored() -> None:
    assert MATHVISTA.score(Item(id="3", row={**NUMBER, "answer": ""}), "1.2").value is None
