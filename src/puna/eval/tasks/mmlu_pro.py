"""MMLU-Pro: 14 categories, up to ten options. Base models: 5 solved examples. Chat models: reasoning, 0 shots.

Averaged over categories. Options "N/A" only fill lists up and are dropped. Source: Wang et al. 2024; llama-models
`llama3_1/eval_details.md`; lm-evaluation-harness `llama3/instruct/mmlu_pro`; llama-stack-evals 0.1.0 `mmlu_pro_cot`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from puna.eval.extract import best_answer, stated_letter
from puna.eval.task import Chat, Completion, Hub, Item, Row, Score, Source, Task, matched, read, user

REVISION = "527feea0afed1de15a8c115abf7be4c912123315"
IDS = ("TIGER-Lab/MMLU-Pro",)
TEST = Source(folder="mmlu_pro", file="test.jsonl", hub=Hub(ids=IDS, split="test", revision=REVISION))
EXAMPLES = Source(folder="mmlu_pro", file="validation.jsonl", hub=Hub(ids=IDS, split="validation", revision=REVISION))
STOPS = ("Given the following question",)  # where a base model begins a question of its own

QUESTION = """Given the following question and candidate answers, choose the best answer.
Question: {question}
{options}

Your response should end with "The best answer is [the_answer_letter]." where the [the_answer_letter] is a letter \
from the provided choices.

Let's think step by step."""


def items(data: Path | None) -> Iterator[Item]:
    """Yields the test questions, in groups by category."""
    for row in read(TEST, data):
        yield Item(id=str(row["question_id"]), row=row, group=row["category"])


def items_with_shots(data: Path | None) -> Iterator[Item]:
    """Yields the test questions with the first five examples of their category."""
    examples = read(EXAMPLES, data)
    for item in items(data):
        yield replace(item, shots=tuple(row for row in examples if row["category"] == item.group)[:5])


def question(row: Row) -> str:
    """Returns the request with the question and its lettered options."""
    texts = [text for text in row["options"] if text != "N/A"]
    options = "\n".join(f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(texts))
    return QUESTION.format(question=row["question"].strip(), options=options)


def solution(row: Row) -> str:
    """Returns an example's reasoning without its first sentence, with the last one in the form that is asked for."""
    text = row["cot_content"].removeprefix("A: Let's think step by step.").strip()
    return re.sub(r"The answer is \(([A-Z])\)\.", r"The best answer is \1.", text)


def base_prompt(item: Item) -> Completion:
    """Returns five questions with their solutions, and the question."""
    shots = "".join(f"{question(shot)} {solution(shot)}\n\n" for shot in item.shots)
    return Completion(text=shots + question(item.row), stops=STOPS)


def chat_prompt(item: Item) -> Chat:
    """Returns the question alone."""
    return user(question(item.row))


def score_base(item: Item, response: str) -> Score:
    """Judges the last stated answer before the model begins a question of its own."""
    return matched(best_answer(response.split(STOPS[0])[0]), item.row["answer"])


def score_chat(item: Item, response: str) -> Score:
    """Judges the stated letter, as Meta's multilingual grader does without its two flaws (see `stated_letter`)."""
    return matched(stated_letter(response), item.row["answer"])


MMLU_PRO_BASE = Task(
    name="mmlu_pro_base",
    items=items_with_shots,
    prompt=base_prompt,
    score=score_base,
    gold=lambda item: f"The best answer is {item.row['answer']}.",
    metric="macro_avg/em",
    shots=5,
    max_new_tokens=512,
    chance=0.1,
    macro=True,
    id_field="question_id",
)
MMLU_PRO = Task(
    name="mmlu_pro",
    items=items,
    prompt=chat_prompt,
    score=score_chat,
    gold=lambda item: f"The best answer is {item.row['answer']}.",
    metric="macro_avg/acc",
    shots=0,
    max_new_tokens=1024,
    chance=0.1,
    macro=True,
    id_field="question_id",
)
