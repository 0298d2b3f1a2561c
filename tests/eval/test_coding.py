"""A program in a reply is worth the share of tests that it passes."""

import pytest

from puna.eval.coding import worth

ANSWER = {"kind": "code", "tests": ["assert double(2) == 4", "assert double(0) == 0"]}


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("Here:\n```python\ndef double(x):\n    return 2 * x\n```", 1),
        ("def double(x): return x + 2", 0.5),
        ("I cannot program.", 0),
        ("", 0),
        ("raise SystemExit(0)", 0),
    ],
)
def test_the_share_of_passed_tests_counts(reply: str, share: float) -> None:
    assert worth(reply, ANSWER, ()) == share


def test_an_answer_without_tests_is_an_error() -> None:
    with pytest.raises(KeyError):
        worth("x = 1", {"kind": "code"}, ())
