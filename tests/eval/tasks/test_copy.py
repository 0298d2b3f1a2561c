"""Copying: the record that is asked for is in the text once, and a response is worth its right words."""

import pytest

from puna.eval.task import Item
from puna.eval.tasks import TASKS
from puna.eval.tasks.copy import OPEN, REQUEST, score, text


@pytest.mark.parametrize("form", [REQUEST, OPEN])
def test_record_stands_once_at_its_depth(form: str) -> None:
    for item in list(TASKS["copy"].items(None))[10:20]:
        whole, record = text(item, form, lambda each: len(each) // 4), f"{item.row['name']}: {item.row['words']}"
        assert whole.count(record) == 1
        assert whole.index(record) / len(whole) == pytest.approx(item.row["cell"].depth, abs=0.1)


def test_share_of_right_words_is_the_value() -> None:
    item = Item(id="x", row={"name": "Bachi", "words": "a b c d e f g h"})
    wanted = {"a b c d e f g h": 1.0, "Bachi: a b c d e f g h.": 1.0, "\n a b c d\nmore": 0.5, "": 0.0, "Bachi:": 0.0}
    wanted |= {"a b c x e f g h": 7 / 8, "z": 0.0, "a b c d e f g h i j": 0.8}
    assert {given: score(item, given).value for given in wanted} == pytest.approx(wanted)
