"""Copying from a long text of records: one of them is asked for word by word. By length of the text and its depth.

All records are random words of our own, so that nothing but the text can help. The value is the share of words that are
right: 1 less the word edits that the response needs, over the longer of both. Everything is drawn from a seed.
Source: the idea is Olsson et al. 2022, "In-context Learning and Induction Heads"; Hsieh et al. 2024 (RULER).
"""

import random
from collections.abc import Iterable, Iterator

from puna.eval.metrics import levenshtein
from puna.eval.task import Item, Score, Task
from puna.eval.tasks.haystack import LENGTHS, LONG_LENGTHS, TURN_TOKENS, Cell, Count, fill, hide, sized

WORDS = (
    "apple arrow basket bread bridge candle chair cloud corn drum feather fire flute garden glass gold grass hammer "
    "honey island kettle ladder lamp leaf lemon mirror moon nest paper pepper pillow pot rain ring river rope salt hat "
    "sand shell shoe silver snow spoon star stone table thread tree wheel wind window wool"
).split()
N_WORDS = 8
SYLLABLES = "ba chi ka lu ma ne pi qui ra su ta ti wa ya".split()
ANSWER_TOKENS = 48
CHANCE = 0.1  # what another record has in common, about

REQUEST = "{text}\n\nOf the records above, copy the one of {name}: its words in their order, and nothing else."
OPEN = "{text}\n{name}:"


def item(cell: Cell) -> Item:
    """Returns the question of a cell: the name and the words of a record."""
    name, words = next(records(random.Random(f"copy/{cell.id}"))).split(": ")
    return Item(id=cell.id, row={"cell": cell, "name": name, "words": words}, group=cell.group)


def records(draw: random.Random) -> Iterator[str]:
    """Yields records without end: a name, a colon, words."""
    while True:
        name = "".join(draw.choice(SYLLABLES) for _ in range(5)).capitalize()
        yield f"{name}: {' '.join(draw.choice(WORDS) for _ in range(N_WORDS))}"


def text(item: Item, form: str, count: Count) -> str:
    """Returns the records and the request, with the answer at most as long as the cell says."""
    cell: Cell = item.row["cell"]
    wanted = f"{item.row['name']}: {item.row['words']}"
    around = count(form.format(name=item.row["name"], text=wanted)) + TURN_TOKENS + ANSWER_TOKENS
    hay = fill(records(random.Random(f"records/{cell.id}")), "\n", cell.length - around, count)
    return form.format(name=item.row["name"], text="\n".join(hide(hay, wanted, cell.depth)))


def score(item: Item, response: str) -> Score:
    """Returns how much of the first line with text is the record; a name in front of it does not count."""
    line = next((line for line in response.splitlines() if line.strip()), "")
    words, given = item.row["words"].split(), line.rpartition(":")[2].strip(" .").split()
    if not given:
        return Score(value=0.0, answer=None, reason="no words in the response")
    value = 1 - levenshtein(given, words) / max(len(given), len(words))
    return Score(value=value, answer=" ".join(given), reason="" if value == 1 else f"expected {item.row['words']}")


def _task(name: str, lengths: Iterable[int], form: str) -> Task:
    return sized(
        name=name,
        lengths=lengths,
        item=item,
        text=lambda each, count: text(each, form, count),
        base=form is OPEN,
        score=score,
        gold=lambda each: str(each.row["words"]),
        metric="words copied",
        max_new_tokens=ANSWER_TOKENS,
        chance=CHANCE,
    )


COPY = _task("copy", LENGTHS, REQUEST)
COPY_BASE = _task("copy_base", LENGTHS, OPEN)
COPY_LONG = _task("copy_long", LONG_LENGTHS, REQUEST)
