"""What a reply is worth, where a program can tell."""

from typing import Any

import pytest

from puna.errors import PromptError
from puna.prompt.message import Tool
from puna.train.rewards import check, reward
from puna.train.wordings import DECLINE

WEATHER = Tool("get_weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = {"kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": "Lima"}}]}


@pytest.mark.parametrize(
    ("reply", "answer", "worth"),
    [
        ("Cat.", {"kind": "exact", "accept": ["cat"]}, 1),
        ("a cat", {"kind": "exact", "accept": ["cat"]}, 0),
        ("cafe\u0301", {"kind": "exact", "accept": ["caf\u00e9"]}, 1),
        ("3", {"kind": "number", "value": 3}, 1),
        ("\u0663", {"kind": "number", "value": 3}, 1),
        ("$2,5", {"kind": "number", "value": 2.5}, 1),
        ("3 cm", {"kind": "number", "value": 3}, 1),
        ("3 or 4", {"kind": "number", "value": 3}, 0),
        ("33", {"kind": "number", "value": 3}, 0),
        ("B", {"kind": "format", "pattern": "[A-D]"}, 1),
        ("B or C", {"kind": "format", "pattern": "[A-D]"}, 0),
        ("the cat is in the house and it was not there", {"kind": "language", "language": "en"}, 1),
        ("die Katze ist in dem Haus und sie war nicht da", {"kind": "language", "language": "en"}, 0),
        ("the", {"kind": "language", "language": "en"}, 0),
        (DECLINE["de"], {"kind": "refusal", "language": "de"}, 1),
        (DECLINE["fr"], {"kind": "refusal", "language": "de"}, 0),
        ("Gern, so geht das.", {"kind": "refusal", "language": "de"}, 0),
        ('[get_weather(city="Lima")]', CALL, 1),
        ('[get_weather(city="Rome")]', CALL, 0.5),
        ('Sure! [get_weather(city="Lima")]', CALL, 0.75),
        ("It is sunny in Lima.", CALL, 0),
    ],
)
def test_replies_are_worth_what_they_should(reply: str, answer: dict[str, Any], worth: float) -> None:
    assert reward(reply, answer, (WEATHER,)) == worth


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "answer is None"),
        ({"kind": "poetry"}, "'poetry'"),
        ({"kind": "number"}, "incomplete"),
        ({"kind": "number", "value": "three"}, "incomplete or wrong"),
        ({"kind": "format", "pattern": "("}, "incomplete or wrong"),
        ({"kind": "language", "language": "xx"}, "answer.language"),
    ],
)
def test_an_answer_that_cannot_be_judged_is_named_with_its_place(answer: object, named: str) -> None:
    with pytest.raises(PromptError, match=r"tasks, line 3: ") as error:
        check(answer, "tasks, line 3")
    assert named in str(error.value)


def test_further_judges_are_asked_for_their_kinds() -> None:
    assert reward("aa", {"kind": "length"}, more={"length": lambda reply, answer, tools: len(reply) / 4}) == 0.5
