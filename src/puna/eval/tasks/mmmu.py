"""MMMU: college questions with pictures from 30 subjects, multiple choice and open. Chat models, 0 shots, accuracy.

Pictures stand where the text says `<image 1>`. A response is cut to its last line with "answer" and what follows, as in
Meta's grader, then read by MMMU's parser, whose flaws `mmmu_choice` and `mmmu_open` name. Source: Yue et al. 2023;
llama-models `llama3_3/eval_details.md`; llama-stack-evals 0.1.0 `mmmu` (prompt, form of the options).
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.eval.extract import last_answer_part, mmmu_choice, mmmu_forms, mmmu_open
from puna.eval.task import Chat, Hub, Item, Row, Score, Source, Task, matched, read, user

SUBJECTS = tuple(
    "Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science Biology Chemistry "
    "Clinical_Medicine Computer_Science Design Diagnostics_and_Laboratory_Medicine Economics Electronics "
    "Energy_and_Power Finance Geography History Literature Manage Marketing Materials Math Mechanical_Engineering "
    "Music Pharmacy Physics Psychology Public_Health Sociology".split()
)
IMAGES = tuple(f"image_{i}" for i in range(1, 8))
VALIDATION = Source(
    folder="mmmu",
    file="validation.jsonl",
    hub=Hub(ids=("MMMU/MMMU", "lmms-lab-encoder/MMMU"), configs=SUBJECTS, split="validation", revision=None),
    images=IMAGES,
)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the questions of the validation split, in groups by subject."""
    for row in read(VALIDATION, data):
        yield Item(id=row["id"], row=row, group=re.sub(r"^[a-z]+_|_\d+$", "", row["id"]))


def options(row: Row) -> dict[str, str]:
    """Returns letter -> text; the published field is the text of a Python list."""
    listed = row["options"]
    texts = ast.literal_eval(listed) if isinstance(listed, str) else listed
    return {chr(ord("A") + i): str(text) for i, text in enumerate(texts)}


def lettered(choices: Mapping[str, str]) -> str:
    """Returns the options as text, a line each: "(A) text."."""
    return "Options: \n" + "\n".join(f"({letter}) {text.rstrip('.')}." for letter, text in choices.items())


def with_images(text: str, row: Row) -> Chat:
    """Returns a user message in which pictures stand for their marks."""
    pieces: list[Any] = []
    for piece in re.split(r"(<image [1-7]>)", text):
        picture = row.get(f"image_{piece[7]}") if re.fullmatch(r"<image [1-7]>", piece) else None
        pieces += [piece if picture is None else picture] if piece else []
    return user(*pieces)


def prompt(item: Item) -> Chat:
    """Returns the question with its pictures and options."""
    row, choices = item.row, options(item.row)
    middle = f"{row['question']} {lettered(choices)}" if row["question_type"] == "multiple-choice" else row["question"]
    head = "Look at the image carefully and solve the following question step-by-step."
    return with_images(f"{head} {middle} Indicate the correct answer at the end.", row)


def score(item: Item, response: str) -> Score:
    """Judges the parsed letter, or whether an open answer names an accepted one."""
    part, accepted = last_answer_part(response), gold_answers(item.row)
    if item.row["question_type"] == "multiple-choice":
        return matched(mmmu_choice(part, options(item.row)), accepted)
    meant = mmmu_open(part)
    forms = [form for answer in accepted for form in mmmu_forms(answer)]
    right = any(f in m if isinstance(m, str) and isinstance(f, str) else m == f for m in meant for f in forms)
    answer = " | ".join(str(each) for each in meant)
    return Score(value=float(right), answer=answer or None, reason="" if right else f"expected {' or '.join(accepted)}")


def gold_answers(row: Row) -> list[str]:
    """Returns the accepted answers; a few of the published ones are texts of Python lists."""
    answer = row["answer"]
    listed = ast.literal_eval(answer) if isinstance(answer, str) and re.fullmatch(r"\[.*\]", answer) else answer
    return [str(each) for each in listed] if isinstance(listed, list) else [str(answer)]


MMMU = Task(
    name="mmmu",
    items=items,
    prompt=prompt,
    score=score,
    gold=lambda item: f"The answer is {_form(item.row)}",
    metric="accuracy",
    shots=0,
    max_new_tokens=2048,
    chance=0.25,
)


def _form(row: Row) -> str:
    answer = gold_answers(row)[0]
    return f"({answer})" if row["question_type"] == "multiple-choice" else answer
