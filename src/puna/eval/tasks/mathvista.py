"""MathVista testmini: mathematics in pictures, from 31 sets. Chat models, 0 shots, accuracy.

The paper lets a language model read the answer out of a response. Here rules do, without a network; `with_judge` takes
a function instead, such as another model. Known flaw of the published grader, kept so that scores compare: what is no
choice becomes the choice with the least edit distance, so a refusal can be right by luck. Not kept: an empty response
too. Source: Lu et al. 2023, section 3.1; lupantech/MathVista `evaluation/`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from puna.eval.extract import mathvista_answer, mathvista_form
from puna.eval.task import Chat, Hub, Item, Score, Source, Task, matched, read, user

TESTMINI = Source(
    folder="mathvista",
    file="testmini*.jsonl",
    hub=Hub(ids=("AI4Math/MathVista",), split="testmini", revision="2b6ad69445fbb5695c9b165475e8decdbeb97747"),
    images=("image",),
)
Judge = Callable[[str, str], str]
"""Reads the answer out of a response: (query, response) -> extraction, "" where there is none."""


def items(data: Path | None) -> Iterator[Item]:
    """Yields the questions, in groups by their source set; those about one picture are a cluster."""
    for row in read(TESTMINI, data):
        group = (row.get("metadata") or {}).get("source", "")
        yield Item(id=str(row["pid"]), row=row, group=group, cluster=str(row.get("image") or ""))


def prompt(item: Item) -> Chat:
    """Returns the picture (on the hub it is the field `decoded_image`) and the published query."""
    return user(item.row.get("decoded_image") or item.row["image"], item.row["query"])


def score(item: Item, response: str) -> Score:
    """Judges what the rules read out of the response."""
    return _score(item, mathvista_answer(response, item.row))


def with_judge(read_answer: Judge) -> Task:
    """Returns the task with a judge in the place of the rules, as in the paper."""
    return _task(lambda item, response: _score(item, read_answer(item.row["query"], response) if response else None))


def _score(item: Item, extraction: str | None) -> Score:
    gold = item.row.get("answer")
    answer = mathvista_form(extraction, item.row)
    if not gold:
        return Score(value=None, answer=answer, reason="the answers of the test split are hidden")
    return matched(answer, str(gold))


def _task(judge: Callable[[Item, str], Score]) -> Task:
    return Task(
        name="mathvista",
        items=items,
        prompt=prompt,
        score=judge,
        gold=lambda item: f"The answer is {item.row['answer']}",
        metric="accuracy",
        shots=0,
        max_new_tokens=2048,
        chance=0.179,  # the paper's random choice
        id_field="pid",
    )


MATHVISTA = _task(score)
