"""MBPP: small Python functions from one sentence and three asserts. Base models, 3 shots, pass@1.

The program runs in the sandbox, then the asserts; all must hold. Known flaw: the asserts run in the program's own
interpreter, so a program that hunts for the sandbox's token could pretend; one that only leaves early cannot. Source:
Austin et al. 2021, section 2.1 and 4.1 (prompt, examples 2, 3, 4); lm-evaluation-harness `mbpp` (the same prompt).
"""

from collections.abc import Iterator
from pathlib import Path

from puna.eval.extract import until
from puna.eval.sandbox import Limits, run
from puna.eval.task import Completion, Hub, Item, Row, Score, Source, Task, read

REVISION = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
IDS = ("google-research-datasets/mbpp",)
TEST = Source(folder="mbpp", file="test.jsonl", hub=Hub(ids=IDS, configs=("full",), split="test", revision=REVISION))
EXAMPLES = Source(
    folder="mbpp", file="prompt.jsonl", hub=Hub(ids=IDS, configs=("full",), split="prompt", revision=REVISION)
)
SHOTS = (2, 3, 4)
STOPS = ("[DONE]",)
LIMITS = Limits(seconds=20, cpu_seconds=10)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the test functions with the examples 2, 3 and 4."""
    shots = tuple(row for row in read(EXAMPLES, data) if row["task_id"] in SHOTS)
    for row in read(TEST, data):
        yield Item(id=str(row["task_id"]), row=row, shots=shots)


def task_text(row: Row) -> str:
    """Returns the request, up to where the program begins."""
    tests = "\n".join(row["test_list"])
    request = f"You are an expert Python programmer, and here is your task: {row['text']}"
    return f"{request} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"


def prompt(item: Item) -> Completion:
    """Returns three solved requests and the request."""
    shots = "".join(f"{task_text(shot)}{shot['code']}\n[DONE]\n\n" for shot in item.shots)
    return Completion(text=shots + task_text(item.row), stops=STOPS)


def score(item: Item, response: str) -> Score:
    """Runs the program with its tests; anything but reaching the end of them is wrong, and named."""
    program = until(response, STOPS).removeprefix("[BEGIN]\n")
    if not program.strip():
        return Score(value=0.0, answer=None, reason="no program in the response")
    tests = "\n".join([item.row.get("test_setup_code") or "", *item.row["test_list"]])
    outcome = run(f"{program}\n{tests}\n", limits=LIMITS)
    return Score(value=float(outcome.finished), answer=program, reason="" if outcome.finished else outcome.describe())


MBPP = Task(
    name="mbpp",
    items=items,
    prompt=prompt,
    score=score,
    gold=lambda item: f"{item.row['code']}\n[DONE]",
    metric="pass@1",
    shots=3,
    max_new_tokens=256,
    chance=0.0,
    has_programs=True,
    id_field="task_id",
)
