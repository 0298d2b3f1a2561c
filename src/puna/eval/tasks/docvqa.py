"""DocVQA: questions about scanned pages, answered with the words on the page. ANLS.

The card takes the validation split for base models and the test split for chat models. The answers of the test split
are hidden: its responses cannot be scored here, and `submission` writes the file that the organisers score. Meta's
open grader matches normalised strings; the card says anls, so this is ANLS. Source: Mathew et al. 2021; llama-models
`llama3_3/eval_details.md` (prompt).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.eval.metrics import anls
from puna.eval.task import Chat, Completion, Hub, Item, Score, Source, Task, read, user

IDS = ("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA")
REVISION = "539088ef8a8ada01ac8e2e6d4e372586748a265e"
VALIDATION = Source(
    folder="docvqa",
    file="validation.jsonl",
    hub=Hub(ids=IDS, configs=("DocVQA",), split="validation", revision=REVISION),
    images=("image",),
)
TEST = Source(
    folder="docvqa",
    file="test.jsonl",
    hub=Hub(ids=IDS, configs=("DocVQA",), split="test", revision=REVISION),
    images=("image",),
)

REQUEST = (
    "Read the text in the image carefully and answer the question with the text as seen exactly in the image. For "
    "yes/no questions, just respond Yes or No. If the answer is numeric, just respond with the number and nothing "
    "else. If the answer has multiple words, just respond with the words and absolutely nothing else. Never respond in "
    "a sentence or a phrase.\n Question: {question}"
)


def items(data: Path | None, source: Source = VALIDATION) -> Iterator[Item]:
    """Yields the questions; those about one document are a cluster."""
    for row in read(source, data):
        yield Item(id=str(row["questionId"]), row=row, cluster=str(row.get("docId") or ""))


def chat_prompt(item: Item) -> Chat:
    """Returns the page and the request."""
    return user(item.row["image"], REQUEST.format_map(item.row))


def base_prompt(item: Item) -> Completion:
    """Returns the page and the request, with a line that the answer continues."""
    return Completion(text=f"{REQUEST.format_map(item.row)}\nAnswer:", stops=("\n",), images=(item.row["image"],))


def score(item: Item, response: str) -> Score:
    """Returns the similarity to the closest accepted answer; without accepted answers nothing can be scored."""
    answer, accepted = response.strip(), item.row.get("answers")
    if not accepted:
        return Score(value=None, answer=answer or None, reason="the answers of the test split are hidden; submit them")
    value = anls(answer, accepted)
    return Score(value=value, answer=answer or None, reason="" if value == 1 else f"expected {' or '.join(accepted)}")


def submission(responses: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Returns the document that the organisers' site (rrc.cvc.uab.es, challenge 17, task 1) scores, as JSON values."""
    return [{"questionId": int(id), "answer": samples[0].strip()} for id, samples in responses.items()]


def _task(name: str, source: Source, *, base: bool) -> Task:
    return Task(
        name=name,
        items=lambda data: items(data, source),
        prompt=base_prompt if base else chat_prompt,
        score=score,
        gold=lambda item: str((item.row.get("answers") or [""])[0]),
        metric="anls",
        shots=0,
        max_new_tokens=512,
        chance=0.0,
        id_field="questionId",
    )


DOCVQA_BASE = _task("docvqa_base", VALIDATION, base=True)
DOCVQA = _task("docvqa", VALIDATION, base=False)
DOCVQA_TEST = _task("docvqa_test", TEST, base=False)
