"""Long texts of a wanted number of tokens with something in them to be found, and results by length and depth.

In: how much, how deep, a seed. Out: texts that are always the same, of sentences or records that we made up, so that
no model has read them. `needle` and `copy` say what is hidden and asked. Tokens are the model's own where it counts
them; a server that does not tell is taken to need CHARACTERS_PER_TOKEN characters for each.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from puna.eval.metrics import Estimate
from puna.eval.task import Completion, Item, Prompt, Reader, Score, Task, user

Count = Callable[[str], int]
"""How many tokens a text has."""

LENGTHS = tuple(2**i for i in range(9, 18))
"""Tokens of prompt and answer together, from 512 to 131,072: a model's context bounds them."""
LONG_LENGTHS = (2**18, 2**19, 2**20)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of the text stands before what is looked for."""
PER_CELL = 2

CHARACTERS_PER_TOKEN = 4
TURN_TOKENS = 32  # what a chat's turns add around a text, generously

ANIMALS = "llama alpaca vicuña guanaco condor fox puma viscacha flamingo hummingbird owl deer".split()
KINDS = "brown young quiet patient small white stubborn clever old hungry sleepy proud".split()
DEEDS = "grazes waits sleeps walks rests stands drinks stops listens climbs runs sings".split()
PLACES = "lake pass valley wall bridge village river spring ridge road market field church".split()
TIMES = ("at dawn", "at noon", "in the evening", "before the rain", "after the snow", "all summer", "every winter")


class Cell(NamedTuple):
    """One text's place in the table: tokens in all, the share of the text before what is hidden, which of several."""

    length: int
    depth: float
    number: int

    @property
    def id(self) -> str:
        return f"{self.length}/{100 * self.depth:.0f}/{self.number}"

    @property
    def group(self) -> str:
        return f"{self.length} tokens, {100 * self.depth:.0f} % deep"


def cells(lengths: Iterable[int], context_len: int | None = None) -> Iterator[Cell]:
    """Yields the cells of all lengths that fit into a context; None is one that nobody told."""
    for length in lengths:
        if context_len is None or length <= context_len:
            yield from (Cell(length, depth, number) for depth in DEPTHS for number in range(PER_CELL))


def sentences(draw: random.Random) -> Iterator[str]:
    """Yields made-up sentences without end."""
    while True:
        kind, animal, deed = draw.choice(KINDS), draw.choice(ANIMALS), draw.choice(DEEDS)
        yield f"The {kind} {animal} {deed} near the {draw.choice(PLACES)} {draw.choice(TIMES)}."


def fill(pieces: Iterator[str], between: str, n_tokens: int, count: Count) -> list[str]:
    """Returns as many pieces as have at most `n_tokens` when they are joined; pieces end or begin where words do."""
    taken: list[str] = []
    sizes: dict[str, int] = {}
    left = n_tokens
    for piece in pieces:
        if piece not in sizes:
            sizes[piece] = count(between + piece)
        left -= sizes[piece]
        if left < 0:
            break
        taken.append(piece)
    while taken and count(between.join(taken)) > n_tokens:
        taken.pop()
    return taken


def hide(hay: Sequence[str], hidden: str, depth: float) -> list[str]:
    """Returns the pieces with `hidden` among them, behind the share `depth`."""
    place = round(depth * len(hay))
    return [*hay[:place], hidden, *hay[place:]]


def sized(
    *,
    name: str,
    lengths: Iterable[int],
    item: Callable[[Cell], Item],
    text: Callable[[Item, Count], str],
    base: bool,
    score: Callable[[Item, str], Score],
    gold: Callable[[Item], str],
    metric: str,
    max_new_tokens: int,
    chance: float,
) -> Task:
    """Returns a task with an item for each cell. Its texts are made when they are asked, as long as the model counts.

    `base`: the text is continued to the end of its line; otherwise it is a chat's only message.
    """

    def ask(each: Item, count: Count) -> Prompt:
        whole = text(each, count)
        return Completion(text=whole, stops=("\n",)) if base else user(whole)

    def fit(reader: Reader) -> Task:
        return replace(
            task,
            items=lambda data: map(item, cells(lengths, reader.context_len)),
            prompt=lambda each: ask(each, _counting(reader)),
        )

    task = Task(
        name=name,
        items=lambda data: map(item, cells(lengths)),
        prompt=lambda each: ask(each, _estimate),
        score=score,
        gold=gold,
        metric=metric,
        shots=0,
        max_new_tokens=max_new_tokens,
        chance=chance,
        fit=fit,
    )
    return task


def by_length_and_depth(groups: Mapping[str, Estimate]) -> str:
    """Returns the results of a report's groups as a Markdown table: a line for each depth, a column for each length."""
    found: dict[tuple[int, int], float] = {}
    for name, estimate in groups.items():
        tokens, percent = name.removesuffix(" % deep").split(" tokens, ")
        found[int(tokens), int(percent)] = estimate.value
    lengths, depths = (sorted({key[i] for key in found}) for i in (0, 1))
    lines = [["depth", *(f"{length:,}" for length in lengths)], [":---", *["---:"] * len(lengths)]]
    for deep in depths:
        shares = [found.get((length, deep)) for length in lengths]
        lines.append([f"{deep} %", *("–" if share is None else f"{100 * share:.0f}" for share in shares)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _counting(reader: Reader) -> Count:
    return lambda text: _estimate(text) if (told := reader.count(text)) is None else told


def _estimate(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN
