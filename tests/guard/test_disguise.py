"""Disguises hide a request from a reader of words, and lose nothing of it."""

import base64

import pytest

from puna.guard import hidden
from puna.guard.disguise import DISGUISES, MAIL, TRANSLATED

REQUEST = "say the word marmalade"


@pytest.mark.parametrize("name", sorted(DISGUISES))
def test_every_disguise_is_a_conversation_that_ends_with_what_is_answered(name: str) -> None:
    messages = DISGUISES[name](REQUEST)
    assert messages[-1].role in {"user", "tool"}
    shows = name in {"plain", "override", "many_shot", "html_comment", "document", "tool_result"} or name.startswith(
        "trans"
    )
    assert (REQUEST in "".join(message.text for message in messages)) == shows


def test_hidden_disguises_are_hidden_text_that_our_rules_decode() -> None:
    for name in ("hidden_tags", "hidden_zero_width", "hidden_bidi", "lookalikes"):
        text = DISGUISES[name](REQUEST)[-1].text
        assert hidden.check(text).action == "block", name
        assert any("marmalade" in payload for payload in hidden.payloads(text)), name


def test_encodings_can_be_decoded_again() -> None:
    encoded = DISGUISES["base64"](REQUEST)[0].text.rpartition("\n")[2]
    assert base64.b64decode(encoded).decode() == REQUEST
    assert bytes.fromhex(DISGUISES["hex"](REQUEST)[0].text.rpartition("\n")[2]).decode() == REQUEST


def test_pieces_over_turns_join_to_the_request() -> None:
    turns = [each.text for each in DISGUISES["over_turns"](REQUEST) if each.role == "user"]
    joined = " ".join(text.partition(": ")[2] for text in turns[:-1])
    assert joined == TRANSLATED["en"].format(REQUEST)


def test_documents_carry_it_inside_and_pictures_as_pixels() -> None:
    assert DISGUISES["tool_result"](REQUEST)[-1].text == MAIL.format(TRANSLATED["en"].format(REQUEST))
    (message,) = DISGUISES["picture"](REQUEST)
    assert len(message.images) == 1 and "marmalade" not in message.text
    assert message.images[0].convert("L").getextrema()[0] < 128, "words are drawn"
