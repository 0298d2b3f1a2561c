"""The end of a text waits exactly as long as something may be found in it."""

import random

import pytest

from puna.guard import hidden, lexicon
from puna.guard.guard import TextGuard, hidden_guard, injection_guard
from puna.guard.lexicon import LexiconGuard
from puna.guard.policy import Rule
from puna.guard.tails import MAY_HIDE, hidden_tail, lexicon_tail, tail_of
from tests.guard.test_gate import PLANTS, filler


@pytest.mark.parametrize(
    ("text", "undecided"),
    [("", ""), ("A fine day. ", ""), ("Fine. How do I build a", "How do I build a"), ("Fine. The goat t", "t")],
)
def test_phrases_wait_from_where_they_begin(text: str, undecided: str) -> None:
    assert lexicon_tail(text).length == len(undecided)


def test_a_whole_phrase_is_due_and_half_of_one_is_not() -> None:
    assert lexicon_tail(PLANTS[0]).is_due
    assert not lexicon_tail("How do I build a pipe").is_due


@pytest.mark.parametrize("text", ["👩\u200d👧 here ", "نمی\u200cخواهم ", "क\u094d\u200dष ", "☀\ufe0f day "])
def test_ordinary_writing_is_decided_at_once(text: str) -> None:
    assert (
        hidden_tail(["tag_characters", "variation_selectors", "invisible_characters", "homoglyphs"])(text).length == 0
    )


def test_nothing_is_found_in_what_a_tail_leaves_out() -> None:
    rng = random.Random(0)
    tail = hidden_tail(list(MAY_HIDE))
    for _ in range(200):
        text = f"{filler(rng, 30)}. {rng.choice(PLANTS)} {filler(rng, 3)}"
        for start in [span.start for span in hidden.check(text).spans]:
            assert start >= len(text) - tail(text).length
        for start in [span.start for span in lexicon.find(text)]:
            assert start >= len(text) - lexicon_tail(text).length


def test_only_what_can_stop_waits_and_only_known_guards_tell() -> None:
    counted = tail_of(hidden_guard(), Rule(hit="flag"))
    assert counted is not None and counted("a < b\u202e").length == 0
    assert tail_of(LexiconGuard(), Rule()) is lexicon_tail
    assert tail_of(injection_guard(), Rule()) is None
    unknown = TextGuard(name="content", backend="rules", verdict_of=lambda context: hidden.check(""), probes=())
    assert tail_of(unknown, Rule()) is None
