import msgspec
import pytest

from puna.serve.schema import ChatMessage, ChatRequest, Chunk, Delta


def test_an_unknown_field_is_an_error_that_names_it() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `best`"):
        msgspec.json.decode(b'{"model": "m", "messages": [], "best": 1}', type=ChatRequest)
    with pytest.raises(msgspec.ValidationError, match=r"\$\.stream_options"):
        msgspec.json.decode(b'{"model": "m", "messages": [], "stream_options": {"x": 1}}', type=ChatRequest)


def test_what_was_not_set_is_not_sent() -> None:
    assert msgspec.to_builtins(Delta(content="a")) == {"content": "a"}
    assert msgspec.to_builtins(Delta()) == {}
    assert msgspec.to_builtins(ChatMessage(role="assistant", content=None, refusal=None)) == {
        "role": "assistant",
        "content": None,
        "refusal": None,
    }
    chunk = Chunk(id="1", object="chat.completion.chunk", created=1, model="m", choices=[], usage=None)
    assert msgspec.to_builtins(chunk)["usage"] is None
