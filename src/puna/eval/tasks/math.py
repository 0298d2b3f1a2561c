"""MATH: competition problems with a final formula. Base models: Minerva's four shots. Chat models: 0 shots, boxed.

Answers are equal as Minerva's strings or as formulas (`same_formula`). Meta adds a judge model for chat models, which
we do not, so our chat value may be a little lower. Source: Hendrycks et al. 2021; Lewkowycz et al. 2022, appendix D;
llama-models `llama3_3/eval_details.md`; llama-stack-evals 0.1.0 `math500`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.eval.extract import boxed, boxed_final_answer, minerva_answer, until
from puna.eval.metrics import same_formula
from puna.eval.task import Chat, Completion, Hub, Item, Row, Score, Source, Task, matched, read, user

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
TEST = Source(
    folder="math",
    file="test.jsonl",
    hub=Hub(ids=("EleutherAI/hendrycks_math",), configs=SUBJECTS, split="test", revision=None),
)
SHOTS = Source(folder="math", file="fewshot_minerva.jsonl", hub=None)
STOPS = ("Problem:",)

CHAT = """Solve the following math problem efficiently and clearly:

- For simple problems (2 steps or fewer):
Provide a concise solution with minimal explanation.

- For complex problems (3 steps or more):
Use this step-by-step format:

## Step 1: [Concise description]
[Brief explanation and calculations]

## Step 2: [Concise description]
[Brief explanation and calculations]

...

Regardless of the approach, always conclude with:

Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.

Where [answer] is just the final number or expression that solves the problem.

Problem: """


def items(data: Path | None) -> Iterator[Item]:
    """Yields the problems, unsolved; the answer is the field of that name or the last box of the solution."""
    for number, row in enumerate(read(TEST, data)):
        answer = row.get("answer") or boxed(row["solution"]) or ""
        yield Item(id=row.get("unique_id", str(number)), row=row | {"answer": answer})


def items_with_shots(data: Path | None) -> Iterator[Item]:
    """Yields the problems with Minerva's four examples, which are no part of the hub's set: they come from `data`."""
    shots = tuple(read(SHOTS, data))
    for item in items(data):
        yield Item(id=item.id, row=item.row, shots=shots)


def problem(row: Row) -> str:
    """Returns a problem up to its solution."""
    return f"Problem:\n{row['problem']}\n\nSolution:"


def base_prompt(item: Item) -> Completion:
    """Returns the solved examples and the problem."""
    shots = "".join(f"{problem(shot)} {shot['solution']}\n\n" for shot in item.shots)
    return Completion(text=shots + problem(item.row), stops=STOPS)


def chat_prompt(item: Item) -> Chat:
    """Returns Meta's request for steps and a boxed answer."""
    return user(CHAT + item.row["problem"])


def score_base(item: Item, response: str) -> Score:
    """Judges what follows "The final answer is"."""
    return _score(item, minerva_answer(until(response, STOPS)))


def score_chat(item: Item, response: str) -> Score:
    """Judges the box of the final answer."""
    return _score(item, boxed_final_answer(response))


def majority(responses: Sequence[str]) -> str:
    """Returns a response with the most frequent answer, equal as formulas; the first of equally frequent ones."""
    answers = [minerva_answer(until(response, STOPS)) for response in responses]
    found = [i for i, answer in enumerate(answers) if answer is not None]
    votes = {i: sum(same_formula(str(answers[i]), str(answers[j])) for j in found) for i in found}
    return responses[max(votes, key=lambda i: votes[i])] if votes else responses[0]


def maj_at(k: int) -> Task:
    """Returns the task of the base models with `k` samples an item, judged by majority; 1 is the card's."""
    return Task(
        name="math" if k == 1 else f"math_maj{k}",
        items=items_with_shots,
        prompt=base_prompt,
        score=score_base,
        gold=lambda item: f"Final Answer: The final answer is ${item.row['answer']}$. I hope it is correct.",
        metric=f"em_maj1@{k}",
        shots=4,
        max_new_tokens=512,
        chance=0.0,
        samples=k,
        temperature=0.0 if k == 1 else 0.6,  # as Minerva's samples
        vote=majority,
        id_field="unique_id",
    )


def _score(item: Item, answer: str | None) -> Score:
    gold = item.row["answer"]
    return matched(gold if answer is not None and same_formula(answer, gold) else answer, gold)


MATH = maj_at(1)
MATH_CHAT = Task(
    name="math_chat",
    items=items,
    prompt=chat_prompt,
    score=score_chat,
    gold=lambda item: f"Therefore, the final answer is: $\\boxed{{{item.row['answer']}}}$. I hope it is correct.",
    metric="em",
    shots=0,
    max_new_tokens=5120,
    chance=0.0,
    id_field="unique_id",
)
