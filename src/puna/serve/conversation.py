"""A conversation of another API on its way to chat's and back: messages, names of their fields, and events.

In: turns, parts and calls as `messages` and `responses` read them. Out: messages in the shape of chat's API, errors
that name the field which the client sent instead of the one that it became, and the other API's events.
Not here: what the fields mean (`convert`).
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from puna.errors import PromptError
from puna.serve.making import ChatMaking
from puna.serve.refusal import Refusal, refusal_of
from puna.serve.schema import ChatChunkChoice, Usage
from puna.serve.stream import named_event


class Conversation:
    """Messages in the making. `names` maps each place in them to where its content came from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}

    def turn(self, role: str, where: str, content: str | None = None, **others: Any) -> None:
        """Begins a message. Without `content` it is made of the parts that follow."""
        self.names[self._here] = where
        self.messages.append({"role": role, "content": [] if content is None else content, **others})
        self.names[f"{self._last}.content"] = f"{where}.content"

    def part(self, where: str, part: Mapping[str, Any]) -> None:
        """Adds a part to the content of the last message."""
        content = self.messages[-1]["content"]
        self.names[f"{self._last}.content[{len(content)}]"] = where
        content.append(dict(part))

    def text(self, where: str, text: str) -> None:
        """Adds a part that is text."""
        self.part(where, {"type": "text", "text": text})

    def image(self, where: str, url: str, **others: Any) -> None:
        """Adds a part that is a picture, behind a data URL or another one."""
        self.part(where, {"type": "image_url", "image_url": {"url": url, **others}})
        self.names[f"{self._last}.content[{len(self.messages[-1]['content']) - 1}].image_url"] = where

    def call(self, where: str, call_id: str, name: str, arguments: Any) -> None:
        """Adds a call to the last message, an assistant's. `arguments` are an object, or its JSON text."""
        calls = self.messages[-1].setdefault("tool_calls", [])
        for inner in ("", ".function"):
            self.names[f"{self._last}.tool_calls[{len(calls)}]{inner}"] = where
        calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})

    @property
    def _here(self) -> str:
        return f"messages[{len(self.messages)}]"

    @property
    def _last(self) -> str:
        return f"messages[{len(self.messages) - 1}]"


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Lets errors out as Refusals that call fields by the names in `names`, where these have one."""
    try:
        yield
    except PromptError as error:
        raise _renamed(refusal_of(error), names) from error
    except Refusal as error:
        raise _renamed(error, names) from error


def _renamed(refusal: Refusal, names: Mapping[str, str]) -> Refusal:
    body, param = refusal.body, refusal.body.param or ""
    known = [old for old in names if param.startswith(old) and param[len(old) :][:1] in ("", ".", "[")]
    if not known:
        return refusal
    old = max(known, key=len)
    return Refusal(
        refusal.status,
        names[old] + body.message.removeprefix(old) if body.message.startswith(old) else body.message,
        param=names[old] + param.removeprefix(old),
        code=body.code,
        kind=body.type,
        headers=refusal.headers,
    )


class Growing(Protocol):
    """An answer of another API in the making: turns chunks of chat into that API's events."""

    def open(self) -> Sequence[msgspec.Struct]:
        """Returns the first events."""
        ...

    def push(self, chunk: ChatChunkChoice) -> Sequence[msgspec.Struct]:
        """Returns the events of a chunk."""
        ...

    def close(self, usage: Usage) -> Sequence[msgspec.Struct]:
        """Returns the last events."""
        ...


async def events(made: ChatMaking, growing: Growing) -> AsyncIterator[bytes]:
    """Yields the events of an answer as they come, each named as its value is tagged."""
    yield b"".join(map(named_event, growing.open()))
    async for chunks in made.chunks():
        yield b"".join(named_event(event) for chunk in chunks for event in growing.push(chunk))
    yield b"".join(map(named_event, growing.close(made.usage())))
