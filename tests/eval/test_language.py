"""The language of a reply is told by letters and small words, and a text without any is in none."""

from puna.eval.language import SMALL_WORDS, is_in
from puna.train import wordings


def test_sentences_are_in_their_language_alone() -> None:
    for language, text in wordings.DECLINE.items():
        assert is_in(text, language), language
        taken = [other for other in wordings.DECLINE if other != language and is_in(text, other)]
        assert taken in ([], ["it"]), language  # Spanish: "lo, no, a, con" are Italian too


def test_a_text_without_small_words_is_in_no_language() -> None:
    assert not is_in("Llama!", "en") and not is_in("123", "en") and not is_in("", "th")
    assert not is_in("a llama", "xx")


def test_letters_decide_where_a_script_has_one_language() -> None:
    assert is_in("แมว", "th") and not is_in("แมว", "en") and not is_in("the cat", "th")
    assert not is_in("the cat แมวแมวแมวแมว", "en")


def test_no_language_beside_the_nine_of_one_script_needs_small_words() -> None:
    assert len(SMALL_WORDS) == 9
