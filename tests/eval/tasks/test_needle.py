"""The needle: who reads the whole text finds it, who reads half finds it there only, who guesses is at chance."""

import re
from collections.abc import Callable

import pytest

from puna.eval.task import Item, score_responses
from puna.eval.tasks import TASKS
from puna.eval.tasks.needle import OPEN, REQUEST, score, text


def answer(read: str, town: str) -> str:
    found = re.search(rf"the number of {town} is (\d+)\.", read)
    return f"It is {found[1]}." if found else "I do not know."


@pytest.mark.parametrize("form", [REQUEST, OPEN])
def test_reader_of_the_end_finds_the_deep_needles_only(form: str) -> None:
    task = TASKS["needle"]
    items = [item for item in task.items(None) if item.row["cell"].length <= 2048]

    def ask(read: Callable[[str], str]) -> dict[str, list[str]]:
        texts = {item.id: text(item, form, lambda each: len(each) // 4) for item in items}
        return {item.id: [answer(read(texts[item.id]), item.row["towns"][0])] for item in items}

    assert score_responses(task, ask(lambda whole: whole), None).score == 1.0
    half = score_responses(task, ask(lambda whole: whole[len(whole) // 2 :]), None)
    found = {name: estimate.value for name, estimate in half.groups.items()}
    assert {found[f"{n} tokens, {depth} % deep"] for n in (512, 1024, 2048) for depth in (75, 100)} == {1.0}
    assert {found[f"{n} tokens, {depth} % deep"] for n in (512, 1024, 2048) for depth in (0, 25)} == {0.0}


def test_other_towns_have_other_numbers_and_the_first_number_counts() -> None:
    item: Item = next(iter(TASKS["needle"].items(None)))
    right, *others = map(str, item.row["numbers"])
    whole = text(item, REQUEST, lambda each: len(each) // 4)
    assert all(whole.count(number) == 1 for number in (right, *others))
    assert score(item, f"**{right}**.").value == 1 and score(item, f"{others[0]} or {right}").value == 0
    assert score(item, f"1{right}").answer is None and score(item, "").value == 0
