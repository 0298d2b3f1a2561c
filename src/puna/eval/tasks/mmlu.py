"""MMLU: 57 subjects, four options. Base models: 5 shots, the most probable letter. Chat models: reasoning, 0 shots.

Both are averaged over subjects ("macro"). Source: Hendrycks et al. 2021; llama-models `llama3_1/eval_details.md`;
lm-evaluation-harness `mmlu/default` (base prompt); llama-stack-evals 0.1.0 `mmlu_cot` (chat prompt).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from puna.eval.extract import best_answer
from puna.eval.task import Chat, Choice, Hub, Item, Row, Score, Source, Task, matched, read, user

REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
IDS = ("cais/mmlu",)
TEST = Source(folder="mmlu", file="test.jsonl", hub=Hub(ids=IDS, configs=("all",), split="test", revision=REVISION))
DEV = Source(folder="mmlu", file="dev.jsonl", hub=Hub(ids=IDS, configs=("all",), split="dev", revision=REVISION))
LETTERS = ("A", "B", "C", "D")

REASON = """Given the following question and four candidate answers (A, B, C and D), choose the best answer.

{block}

- For simple problems:
Directly provide the answer with minimal explanation.

- For complex problems:
Use this step-by-step format:
## Step 1: [Concise description]
[Brief explanation]
## Step 2: [Concise description]
[Brief explanation]

Regardless of the approach, always conclude with:
The best answer is [the_answer_letter].
where the [the_answer_letter] is one of A, B, C or D.

Let's think step by step."""


def items(data: Path | None) -> Iterator[Item]:
    """Yields the test questions, in groups by subject; ids count within the subject."""
    seen = Counter[str]()
    for row in read(TEST, data):
        subject = row["subject"]
        yield Item(id=f"{subject}/{seen[subject]}", row=row, group=subject)
        seen[subject] += 1


def items_with_shots(data: Path | None) -> Iterator[Item]:
    """Yields the test questions with the first five development questions of their subject."""
    dev = read(DEV, data)
    for item in items(data):
        yield replace(item, shots=tuple(row for row in dev if row["subject"] == item.group)[:5])


def block(row: Row) -> str:
    """Returns the question and its lettered options."""
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options}"


def base_prompt(item: Item) -> Choice:
    """Returns the classic prompt; the answer is the most probable letter behind "Answer:"."""
    head = f"The following are multiple choice questions (with answers) about {item.group.replace('_', ' ')}.\n\n"
    shots = "".join(f"{block(shot)}\nAnswer: {LETTERS[shot['answer']]}\n\n" for shot in item.shots)
    text = f"{head}{shots}{block(item.row)}\nAnswer:"
    return Choice(text=text, continuations=tuple(f" {letter}" for letter in LETTERS), labels=LETTERS)


def chat_prompt(item: Item) -> Chat:
    """Returns Meta's request to reason and to state the best answer."""
    return user(REASON.format(block=f"Question: {block(item.row)}"))


def score(item: Item, response: str) -> Score:
    """Judges a letter, or a response that states the best answer; the last statement counts."""
    letter = re.fullmatch(r"\s*\(?([A-D])\)?\.?\s*", response)
    return matched(letter[1] if letter else best_answer(response), LETTERS[item.row["answer"]])


MMLU = Task(
    name="mmlu",
    items=items_with_shots,
    prompt=base_prompt,
    score=score,
    gold=lambda item: LETTERS[item.row["answer"]],
    metric="macro_avg/acc_char",
    shots=5,
    max_new_tokens=1,
    chance=0.25,
    macro=True,
)
MMLU_COT = Task(
    name="mmlu_cot",
    items=items,
    prompt=chat_prompt,
    score=score,
    gold=lambda item: f"The best answer is {LETTERS[item.row['answer']]}.",
    metric="macro_avg/acc",
    shots=0,
    max_new_tokens=1024,
    chance=0.25,
    macro=True,
)
