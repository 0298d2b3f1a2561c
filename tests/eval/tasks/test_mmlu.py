"""MMLU's prompts, to the letter."""

from puna.eval.task import Choice, Item
from puna.eval.tasks.mmlu import MMLU, base_prompt, chat_prompt

ROW = {"question": " Where do llamas live? ", "choices": ["Andes", "Alps", "Ural", "Atlas"], "answer": 0}
SHOT = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}
ITEM = Item(id="high_school_geography/0", row=ROW, shots=(SHOT,), group="high_school_geography")


def test_base_prompt_is_the_classic_one() -> None:
    prompt = base_prompt(ITEM)
    assert prompt.text == (
        "The following are multiple choice questions (with answers) about high school geography.\n\n"
        "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "Where do llamas live?\nA. Andes\nB. Alps\nC. Ural\nD. Atlas\nAnswer:"
    )
    assert prompt == Choice(text=prompt.text, continuations=(" A", " B", " C", " D"), labels=("A", "B", "C", "D"))


def test_chat_prompt_asks_for_the_best_answer() -> None:
    text = chat_prompt(ITEM).messages[0]["content"][0]["text"]
    assert "\n\nQuestion: Where do llamas live?\nA. Andes\n" in text and text.endswith("\n\nLet's think step by step.")


def test_letters_and_statements_are_scored() -> None:
    given = {"A": 1, " (A). ": 1, "B": 0, "So the best answer is A.": 1, "Andes": 0, "": 0}
    assert {text: MMLU.score(ITEM, text).value for text in given} == given
