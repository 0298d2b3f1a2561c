"""MMMU-Pro: MMMU's harder questions with ten options, as text and as screenshots. Chat models, 0 shots.

The card's value is the mean of both settings: `mmmu_pro` asks both and averages the two groups, the two forms of a
question being a cluster. Several pictures stay separate (Meta stitched them for Llama 3.2, which saw one). Letters go
to J; Meta's open code stops at H. Source: Yue et al. 2024; llama-models `llama3_3/eval_details.md` (prompts).
"""

from collections.abc import Iterator
from pathlib import Path

from puna.eval.extract import mmmu_pro_choice
from puna.eval.task import Chat, Hub, Item, Score, Source, Task, matched, read, user
from puna.eval.tasks.mmmu import IMAGES, lettered, options, with_images

IDS = ("MMMU/MMMU_Pro",)
STANDARD = Source(
    folder="mmmu_pro",
    file="standard_10_options.jsonl",
    hub=Hub(ids=IDS, configs=("standard (10 options)",), split="test", revision=None),
    images=IMAGES,
)
VISION = Source(
    folder="mmmu_pro",
    file="vision.jsonl",
    hub=Hub(ids=IDS, configs=("vision",), split="test", revision=None),
    images=("image",),
)

EXTRACT = (
    "Your job is to extract the question from the image the user attached, reason about it, and then answer the "
    "question. Follow these steps: \n1. Always start by Clearly stating the question shown in the image, and also "
    "state all of the options. \n2. Then, Carefully review the information beyond the question shown in the image and "
    "analyze it without making any assumptions. \n3. Next, use your understanding of the image to answer the question "
    "you listed out in the first step. Use a step-by-step process \n4. Finally, write the answer in the following "
    "format where X is exactly one of the option letters: The best answer is X.\nAlways follow the steps above, "
    "printing out everything. Let's think step by step. Your response must be among the given options."
)


def standard(data: Path | None) -> Iterator[Item]:
    """Yields the questions as text with pictures."""
    for row in read(STANDARD, data):
        yield Item(id=row["id"], row=row, group="standard", cluster=row["id"])


def vision(data: Path | None) -> Iterator[Item]:
    """Yields the questions as screenshots."""
    for row in read(VISION, data):
        yield Item(id=row["id"], row=row, group="vision", cluster=row["id"])


def both(data: Path | None) -> Iterator[Item]:
    """Yields the questions of both settings, the setting before the id."""
    for item in (*standard(data), *vision(data)):
        yield Item(id=f"{item.group}/{item.id}", row=item.row, group=item.group, cluster=item.cluster)


def prompt(item: Item) -> Chat:
    """Returns the question with pictures and options, or the screenshot with the request to read it."""
    if item.group == "vision":
        return user(item.row["image"], EXTRACT)
    return with_images(f"{item.row['question']} {lettered(options(item.row))}", item.row)


def score(item: Item, response: str) -> Score:
    """Judges the letter that the response states or means."""
    return matched(mmmu_pro_choice(response, options(item.row)), item.row["answer"])


MMMU_PRO_STANDARD = Task(
    name="mmmu_pro_standard",
    items=standard,
    prompt=prompt,
    score=score,
    gold=lambda item: f"The best answer is {item.row['answer']}.",
    metric="accuracy",
    shots=0,
    max_new_tokens=2048,
    chance=0.1,
)
MMMU_PRO_VISION = Task(
    name="mmmu_pro_vision",
    items=vision,
    prompt=prompt,
    score=score,
    gold=lambda item: f"The best answer is {item.row['answer']}.",
    metric="accuracy",
    shots=0,
    max_new_tokens=2048,
    chance=0.1,
)
MMMU_PRO = Task(
    name="mmmu_pro",
    items=both,
    prompt=prompt,
    score=score,
    gold=lambda item: f"The best answer is {item.row['answer']}.",
    metric="accuracy, mean of standard and vision",
    shots=0,
    max_new_tokens=2048,
    chance=0.1,
    macro=True,
)
