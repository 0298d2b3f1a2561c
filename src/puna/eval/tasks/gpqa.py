"""GPQA Diamond: 198 questions that experts agree on and others cannot look up. Chat models, 0 shots, accuracy.

The set is gated: reading it from the hub needs accepted terms and a token, and its authors ask not to show the
questions in plain text, so keep item files private. Options are shuffled by a generator seeded with the item's id, so
every run sees one order; Meta's order is not published. Source: Rein et al. 2023; llama-stack-evals 0.1.0 `gpqa`.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from puna.eval.extract import stated_letter
from puna.eval.task import Chat, Hub, Item, Row, Score, Source, Task, matched, read, user

TEST = Source(
    folder="gpqa",
    file="gpqa_diamond.jsonl",
    hub=Hub(ids=("Idavidrein/gpqa",), configs=("gpqa_diamond",), split="train", revision=None),
)
FIELDS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"

REQUEST = """Given the following question and four candidate answers (A, B, C and D), choose the best answer.
Question: {question}
{options}
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
    """Yields the questions; the id is the published record id, or else the place."""
    for number, row in enumerate(read(TEST, data)):
        yield Item(id=str(row.get("Record ID") or number), row=row, group=str(row.get("High-level domain") or ""))


def options(item: Item) -> list[str]:
    """Returns the fields of the four answers in the order in which they are shown."""
    return random.Random(f"gpqa/{item.id}").sample(FIELDS, k=len(FIELDS))


def prompt(item: Item) -> Chat:
    """Returns the question with its shuffled options."""
    row: Row = item.row
    lines = [f"{letter}. {row[field].strip()}" for letter, field in zip(LETTERS, options(item), strict=True)]
    return user(REQUEST.format(question=row["Question"].strip(), options="\n".join(lines)))


def right_letter(item: Item) -> str:
    """Returns the letter behind which the correct answer is shown."""
    return LETTERS[options(item).index(FIELDS[0])]


def score(item: Item, response: str) -> Score:
    """Judges the stated letter."""
    return matched(stated_letter(response), right_letter(item))


GPQA_DIAMOND = Task(
    name="gpqa_diamond",
    items=items,
    prompt=prompt,
    score=score,
    gold=lambda item: f"The best answer is {right_letter(item)}.",
    metric="accuracy",
    shots=0,
    max_new_tokens=2048,
    chance=0.25,
    id_field="Record ID",
    is_private=True,
)
