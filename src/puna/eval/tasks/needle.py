"""Needle in a haystack: one sentence of a long text says what is asked. By the text's length and the sentence's depth.

Three more sentences say the same of other towns, so that a model which only finds a number is right by one in four. The
answer is the first number of five digits in the response. Everything is made up and drawn from a seed: no data is read.
Source: the idea is Kamradt 2023, "Needle In A Haystack"; other keys as in Hsieh et al. 2024 (RULER, multi-key).
"""

import random
import re
from collections.abc import Iterable

from puna.eval.task import Item, Score, Task, matched
from puna.eval.tasks.haystack import LENGTHS, LONG_LENGTHS, TURN_TOKENS, Cell, Count, fill, hide, sentences, sized

TOWNS = "Abancay Ayaviri Calca Chivay Corocoro Desaguadero Ilave Juli Lampa Moho Pisac Sicuani Turco Yunguyo".split()
N_OTHERS = 3
ANSWER_TOKENS = 24

SENTENCE = "Remember that the number of {town} is {number}."
REQUEST = (
    "Somewhere in this text stands the number of {town}.\n\n{text}\n\n"
    "What is the number of {town}? Answer with the number alone."
)
OPEN = "{text}\n\nQuestion: What is the number of {town}?\nAnswer: The number of {town} is"


def item(cell: Cell) -> Item:
    """Returns the question of a cell: towns with their numbers, of which the first is asked."""
    draw = random.Random(f"needle/{cell.id}")
    towns, numbers = draw.sample(TOWNS, 1 + N_OTHERS), draw.sample(range(10_000, 100_000), 1 + N_OTHERS)
    row = {"cell": cell, "towns": towns, "numbers": numbers, "question": f"What is the number of {towns[0]}?"}
    return Item(id=cell.id, row=row, group=cell.group)


def text(item: Item, form: str, count: Count) -> str:
    """Returns the text with its needles and the question, with the answer at most as long as the cell says."""
    cell: Cell = item.row["cell"]
    needles = [
        SENTENCE.format(town=town, number=number)
        for town, number in zip(item.row["towns"], item.row["numbers"], strict=True)
    ]
    town = item.row["towns"][0]
    around = count(form.format(town=town, text=" ".join(needles))) + TURN_TOKENS + ANSWER_TOKENS
    draw = random.Random(f"hay/{cell.id}")
    hay = fill(sentences(draw), " ", cell.length - around, count)
    for needle in needles[1:]:
        hay = hide(hay, needle, draw.random())
    return form.format(town=town, text=" ".join(hide(hay, needles[0], cell.depth)))


def score(item: Item, response: str) -> Score:
    """Judges the first number of five digits."""
    found = re.search(r"(?<!\d)\d{5}(?!\d)", response)
    return matched(found[0] if found else None, str(item.row["numbers"][0]))


def _task(name: str, lengths: Iterable[int], form: str) -> Task:
    return sized(
        name=name,
        lengths=lengths,
        item=item,
        text=lambda each, count: text(each, form, count),
        base=form is OPEN,
        score=score,
        gold=lambda each: str(each.row["numbers"][0]),
        metric="accuracy",
        max_new_tokens=ANSWER_TOKENS,
        chance=1 / (1 + N_OTHERS),
    )


NEEDLE = _task("needle", LENGTHS, REQUEST)
NEEDLE_BASE = _task("needle_base", LENGTHS, OPEN)
NEEDLE_LONG = _task("needle_long", LONG_LENGTHS, REQUEST)
