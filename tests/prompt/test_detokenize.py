"""Streamed text equals the whole text, character by character and up to the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import PromptError
from puna.prompt.detokenize import Detokenizer
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.vocab import END_OF_TURN, PYTHON_START

CHARACTERS = "abt he\n😀é\u0301नि"


def _stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


def _up_to_first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition, plainly: grow the text by one character until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ended = [string for string in stop if text[:end].endswith(string)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_streamed_equals_whole_however_tokens_split_characters(text: str, tokenizer: Tokenizer) -> None:
    for ids in (tokenizer.encode(text), [*text.encode()]):  # merged tokens, and one token per byte
        shown = _stream(Detokenizer(tokenizer), ids)
        assert "".join(shown) == text
        assert not any("\ufffd" in piece for piece in shown) or "\ufffd" in text


@given(ids=st.lists(st.integers(0, 282)))
@settings(max_examples=200, deadline=None)
def test_any_ids_stream_to_what_they_decode_to(ids: list[int], tokenizer: Tokenizer) -> None:
    ids = [token_id for token_id in ids if token_id not in tokenizer.stop_ids]
    assert "".join(_stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@given(
    text=st.text(CHARACTERS, max_size=40),
    stop=st.lists(st.text(CHARACTERS, min_size=1, max_size=4), max_size=4),
    by_bytes=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_first_stop_string_ends_the_text_wherever_tokens_split_it(
    text: str, stop: list[str], by_bytes: bool, tokenizer: Tokenizer
) -> None:
    detokenizer = Detokenizer(tokenizer, stop)
    shown = "".join(_stream(detokenizer, [*text.encode()] if by_bytes else tokenizer.encode(text)))
    assert (shown, detokenizer.stopped) == _up_to_first_stop(text, stop)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    assert _stream(Detokenizer(tokenizer), [*"é😀".encode()]) == ["", "é", "", "", "", "😀", ""]


def test_an_unfinished_character_shows_at_the_end_only(tokenizer: Tokenizer) -> None:
    assert _stream(Detokenizer(tokenizer), [*"a😀".encode()[:-1]]) == ["a", "", "", "", "\ufffd"]


def test_the_beginning_of_a_stop_string_is_held_until_it_is_clear(tokenizer: Tokenizer) -> None:
    assert _stream(Detokenizer(tokenizer, ["###"]), [*b"a##b#"]) == ["a", "", "", "##b", "", "#"]


def test_nothing_follows_a_stop_string(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, ["stop", "b"])
    assert _stream(detokenizer, [*b"a stop b"]) == ["a", " ", "", "", "", "", "", "", ""]
    assert detokenizer.stopped == "stop"


def test_a_character_that_is_held_can_complete_a_stop_string_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, ["\ufffd"])
    assert _stream(detokenizer, [97, 0xF0]) == ["a", "", ""]
    assert detokenizer.stopped == "\ufffd"


def test_special_tokens_show_as_names_but_the_end_of_a_turn_is_silent(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special[PYTHON_START], 97, tokenizer.special[END_OF_TURN]]
    assert _stream(Detokenizer(tokenizer), ids) == [PYTHON_START, "a", "", ""]


@pytest.mark.parametrize("stop", [[""], ["a", ""], "text"])
def test_an_empty_stop_string_is_refused(stop: list[str], tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="stop: is"):
        Detokenizer(tokenizer, stop)


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="token id 5000"):
        Detokenizer(tokenizer).push(5000)


def test_the_stop_string_may_be_part_of_the_text_and_special_tokens_may_show_or_not(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("ab"), tokenizer.special[PYTHON_START], *tokenizer.encode("c END d")]
    ids = [*ids, tokenizer.special[END_OF_TURN]]
    shown = {
        show: "".join(_stream(Detokenizer(tokenizer, ["END"], include_stop=show is None, show_special=show), ids))
        for show in (None, True, False)
    }
    assert shown == {None: f"ab{PYTHON_START}c END", True: f"ab{PYTHON_START}c ", False: "abc "}
    assert "".join(_stream(Detokenizer(tokenizer, show_special=True), ids)).endswith(f" d{END_OF_TURN}")
