"""Phrases that preach are found as the card lists them, in other spellings and languages; ordinary words are not."""

import pytest

from puna.guard import tone


@pytest.mark.parametrize(
    "text",
    [
        "It's important to stretch.",
        "It\u2019s crucial to listen.",
        "It is essential to rest.",
        "it's unethical to lie",
        "It's worth noting that cats sleep.",
        "Remember, nobody is perfect.",
        "Well. Remember that it rains.",
    ],
)
def test_the_phrases_of_the_card_are_found(text: str) -> None:
    assert [span.code for span in tone.find(text)] == ["card"]


@pytest.mark.parametrize(
    "text",
    [
        "I remember the day.",
        "It is an important town to visit.",
        "Noting it is worth a try.",
        "Do you remember that?",
        "",
    ],
)
def test_ordinary_words_are_not(text: str) -> None:
    assert tone.find(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Es ist wichtig, zu schlafen.", "translated"),
        ("Il est important de dormir.", "translated"),
        ("Es importante que duermas.", "translated"),
        ("यह महत्वपूर्ण है कि", "translated"),
        ("As an AI language model, I", "templated"),
        ("I hope this helps!", "templated"),
    ],
)
def test_translations_and_set_phrases_are_counted_apart(text: str, kind: str) -> None:
    assert [span.code for span in tone.find(text)] == [kind]


def test_rate_is_the_share_of_answers_with_a_phrase() -> None:
    measured = tone.measure(["It's important to eat. It's important to sleep.", "Eat.", "As an AI, I eat.", "Sleep."])
    assert (measured.n, measured.rate) == (4, 0.25)
    assert (measured.phrases["card"], measured.answers["card"], measured.answers["templated"]) == (2, 1, 1)
    assert tone.measure([]).rate is None
