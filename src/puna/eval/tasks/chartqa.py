"""ChartQA: questions about charts, half written by people. Relaxed accuracy; the card's value is over all questions.

Chat models reason and end with "FINAL ANSWER:"; base models answer at once, in words of our own for lack of published
ones. What the measure itself gets wrong is kept and named in `relaxed_match`: a year is a number within 5 % of others,
and a target of 0 asks for exactly 0. Quotation marks around an answer do not count, also around a number, where
lm-eval's copy counts them. Source: Masry et al. 2022; llama-models `llama3_3/eval_details.md` (the 11B model's prompt).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from puna.eval.extract import final_answer
from puna.eval.metrics import relaxed_match
from puna.eval.task import Chat, Completion, Hub, Item, Row, Score, Source, Task, matched, read, user

TEST = Source(
    folder="chartqa",
    file="test.jsonl",
    hub=Hub(ids=("HuggingFaceM4/ChartQA", "lmms-lab/ChartQA", "lmms-lab-encoder/ChartQA"), split="test", revision=None),
    images=("image",),
)
AUTHORS = {0: "human", 1: "augmented"}

REASON = (
    "You are provided a chart image and will be asked a question. You have to think through your answer and provide a "
    "step-by-step solution. Once you have the solution, write the final answer in at most a few words at the end with "
    'the phrase "FINAL ANSWER:". The question is: {query}\nLet\'s think step by step.'
)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the questions, in groups by author; those about one chart are a cluster where its name is known."""
    seen = Counter[str]()
    for row in map(_named, read(TEST, data)):
        chart = str(row.get("imgname", ""))
        name = chart.rpartition(".")[0] or "chart"
        yield Item(id=f"{name}/{seen[name]}", row=row, group=AUTHORS[int(row["human_or_machine"])], cluster=chart)
        seen[name] += 1


def chat_prompt(item: Item) -> Chat:
    """Returns the picture and the request to reason."""
    return user(item.row["image"], REASON.format_map(item.row))


def base_prompt(item: Item) -> Completion:
    """Returns the picture and a line that the answer continues."""
    return Completion(text=f"Question: {item.row['query']}\nShort answer:", stops=("\n",), images=(item.row["image"],))


def score_chat(item: Item, response: str) -> Score:
    """Judges what follows the last "FINAL ANSWER:"."""
    return _score(item, final_answer(response))


def score_base(item: Item, response: str) -> Score:
    """Judges the first line."""
    return _score(item, response.strip().split("\n")[0] or None)


def _named(row: Row) -> Row:
    """Returns the row with the names of HuggingFaceM4/ChartQA; lmms-lab has others: question, answer, type."""
    if "query" in row:
        return row
    author = int(str(row["type"]).startswith("augmented"))
    return {**row, "query": row["question"], "label": [row["answer"]], "human_or_machine": author}


def _score(item: Item, answer: str | None) -> Score:
    gold = str(item.row["label"][0])
    return matched(gold if answer is not None and relaxed_match(answer, gold) else answer, gold)


CHARTQA = Task(
    name="chartqa",
    items=items,
    prompt=chat_prompt,
    score=score_chat,
    gold=lambda item: f"FINAL ANSWER: {item.row['label'][0]}",
    metric="relaxed_accuracy",
    shots=0,
    max_new_tokens=512,
    chance=0.0,
)
CHARTQA_BASE = Task(
    name="chartqa_base",
    items=items,
    prompt=base_prompt,
    score=score_base,
    gold=lambda item: str(item.row["label"][0]),
    metric="relaxed_accuracy",
    shots=0,
    max_new_tokens=32,
    chance=0.0,
)
