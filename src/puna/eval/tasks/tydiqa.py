"""TyDi QA, gold passage task: questions in nine languages, answered in a few words. Base models, 1 shot, F1.

How the card asks is not published. Its values are far below those with the passage and near the closed-book values of
others, so `tydiqa` gives no passage, which is inferred; `tydiqa_gold` gives it. The words of the prompt are ours. F1 is
averaged by language, then over languages. Source: Clark et al. 2020; Rajpurkar et al. 2016 (F1).
"""

from collections.abc import Iterator
from pathlib import Path

from puna.eval.metrics import squad_f1
from puna.eval.task import Completion, Hub, Item, Row, Score, Source, Task, read

IDS = ("google-research-datasets/tydiqa",)
TEST = Source(
    folder="tydiqa",
    file="validation.jsonl",
    hub=Hub(ids=IDS, configs=("secondary_task",), split="validation", revision=None),
)
EXAMPLES = Source(
    folder="tydiqa", file="exemplars.jsonl", hub=Hub(ids=IDS, configs=("secondary_task",), split="train", revision=None)
)
STOPS = ("\n",)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the questions with the first example of their language; questions about one article are a cluster."""
    first: dict[str, Row] = {}
    for row in read(EXAMPLES, data):
        first.setdefault(language(row), row)
    for row in read(TEST, data):
        key = language(row)
        shots = (first[key],) if key in first else ()
        yield Item(id=row["id"], row=row, shots=shots, group=key, cluster=f"{key}/{row['title']}")


def language(row: Row) -> str:
    """Returns the language of a row, which is how its id begins."""
    return str(row["id"]).split("-")[0]


def closed_book(item: Item) -> Completion:
    """Returns a solved question and the question, without passages."""
    return _prompt(item, "Question: {question}\nAnswer:")


def gold_passage(item: Item) -> Completion:
    """Returns a solved question and the question, each behind its passage."""
    return _prompt(item, "Passage: {context}\nQuestion: {question}\nAnswer:")


def score(item: Item, response: str) -> Score:
    """Returns the F1 of the response's first line with text against the best accepted answer."""
    answer = response.strip().split("\n")[0].strip()
    accepted = item.row["answers"]["text"]
    value = squad_f1(answer, accepted)
    return Score(value=value, answer=answer or None, reason="" if value == 1 else f"expected {' or '.join(accepted)}")


def _prompt(item: Item, form: str) -> Completion:
    shots = "".join(f"{form.format_map(shot)} {shot['answers']['text'][0]}\n\n" for shot in item.shots)
    return Completion(text=shots + form.format_map(item.row), stops=STOPS)


TYDIQA = Task(
    name="tydiqa",
    items=items,
    prompt=closed_book,
    score=score,
    gold=lambda item: str(item.row["answers"]["text"][0]),
    metric="average/f1",
    shots=1,
    max_new_tokens=32,
    chance=0.0,
    macro=True,
)
TYDIQA_GOLD = Task(
    name="tydiqa_gold",
    items=items,
    prompt=gold_passage,
    score=score,
    gold=lambda item: str(item.row["answers"]["text"][0]),
    metric="average/f1",
    shots=1,
    max_new_tokens=32,
    chance=0.0,
    macro=True,
)
