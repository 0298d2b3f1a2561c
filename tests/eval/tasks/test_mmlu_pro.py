"""MMLU-Pro: both settings' prompts, and what is not asked."""

from puna.eval.task import Item
from puna.eval.tasks.mmlu_pro import MMLU_PRO, MMLU_PRO_BASE, base_prompt, chat_prompt, solution

ROW = {"question": " Where? ", "options": ["Andes", "N/A", "Alps"], "answer": "A", "category": "law"}
SHOT = {
    "question": "1 + 1?",
    "options": ["1", "2"],
    "answer": "B",
    "category": "law",
    "cot_content": "A: Let's think step by step. One and one is two. The answer is (B).",
}
ITEM = Item(id="7", row=ROW, shots=(SHOT,), group="law")


def test_shots_reason_and_end_in_the_form_that_is_asked_for() -> None:
    assert solution(SHOT) == "One and one is two. The best answer is B."
    text = base_prompt(ITEM).text
    assert "Let's think step by step. One and one is two. The best answer is B.\n\nGiven the following" in text
    assert text.endswith("Question: Where?\nA. Andes\nB. Alps\n\n" + text[text.rindex("Your response should") :])


def test_fillers_are_no_options_and_chats_have_no_shots() -> None:
    text = chat_prompt(ITEM).messages[0]["content"][0]["text"]
    assert "N/A" not in text and "1 + 1?" not in text and text.endswith("Let's think step by step.")
    assert (MMLU_PRO_BASE.shots, MMLU_PRO_BASE.max_new_tokens, MMLU_PRO.max_new_tokens) == (5, 512, 1024)


def test_only_the_answer_before_a_question_of_its_own_counts() -> None:
    own = "The best answer is A.\n\nGiven the following question and candidate answers ... The best answer is B."
    assert MMLU_PRO_BASE.score(ITEM, own).value == 1
    assert MMLU_PRO_BASE.score(ITEM, "So the answer is (A).").value == 1  # the fallback of the set's authors
    assert MMLU_PRO.score(ITEM, "Antwort: A").value == 1 and MMLU_PRO.score(ITEM, "").value == 0
