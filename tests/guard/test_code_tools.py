"""Scanners of other people: alive where they are installed, named with the remedy where they are not."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from puna.errors import ConfigError
from puna.guard.code_tools import bandit_guard, codeshield_guard
from puna.guard.guard import Context, TextGuard, self_test

TOOLS = {"bandit": bandit_guard, "codeshield": codeshield_guard}
FENCED = "Look:\n```python\nimport pickle\n\nx = pickle.loads(data)\n```\n"


@pytest.mark.parametrize(("name", "make"), TOOLS.items())
def test_a_tool_that_is_missing_is_named_and_one_that_is_there_works(name: str, make: Callable[[], TextGuard]) -> None:
    if find_spec(name) is None:
        with pytest.raises(ConfigError, match=f"pip install {name}"):
            make()
        return
    guard = make()
    assert self_test(guard).ok, self_test(guard).detail
    verdict = guard.check(Context.of_text(FENCED, "assistant_output"))
    assert verdict.codes == ("CWE-502",)
    assert FENCED[verdict.spans[0].start : verdict.spans[0].end] == "x = pickle.loads(data)"
    other = guard.check(Context.of_text("fn main() {}", "code", "ruby" if name == "codeshield" else "rust"))
    assert name != "bandit" or other.status == "skipped"
