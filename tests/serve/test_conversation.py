import pytest

from puna.errors import PromptError
from puna.serve.conversation import Conversation, named
from puna.serve.convert import Refusal


def test_an_error_names_the_field_that_the_client_sent() -> None:
    conversation = Conversation()
    conversation.turn("user", "input[4]")
    conversation.image("input[4].content[2].image_url", "data:,")
    conversation.turn("assistant", "input[5]")
    conversation.call("input[6]", "c", "f", "{")
    names = {"max_tokens": "max_output_tokens"} | conversation.names
    for message, expected in (
        ("messages[0].content[0].image_url is no picture", "input[4].content[2].image_url"),
        ("messages[1].tool_calls[0].function.arguments: is not JSON", "input[6].arguments"),
        ("max_tokens is 0: give 1 or more", "max_output_tokens"),
        ("messages[11].role is strange", "messages[11].role"),
    ):
        with pytest.raises(Refusal, match=f"^{expected}".replace("[", r"\[")) as refused, named(names):
            raise PromptError(message)
        assert refused.value.body.param == expected


def test_an_error_without_a_field_and_what_is_no_error_pass() -> None:
    with pytest.raises(Refusal, match="elsewhere") as refused, named({"a": "b"}):
        raise Refusal(429, "elsewhere", code="overloaded", headers={"Retry-After": "1"})
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    with named({}):
        pass
