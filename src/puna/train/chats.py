"""Conversations from JSON lines, in the shapes that tuning data comes in, each line checked before anything is trained.

In: a file. Out: `Chat` values. A line holds one object in one of two shapes, which one file may mix:

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}               OpenAI's
    {"conversations": [{"from": "human", "value": "<image> ..."}, ...], "images": [...]}  ShareGPT's

or, where that is allowed, a plain text, which is read so that what was learnt before tuning is not forgotten:

    {"text": "Once upon a time ..."}

Of a preference the common part stands there, or in "prompt", and "chosen" and "rejected" beside it: a text, a message
or several. A message may say `"weight": 0`: it is read, and not learnt. Pictures are data URLs, or paths relative to
the file's folder that stay within it. What a line holds besides ("id", "source", an answer to compare with ...) is kept
as it is.

A wrong line is refused with file, line, field and what to do: nothing is skipped in silence.
Not here: tokens (`chat_store`), whether a conversation is worth training on (`difficulty`).
Source: OpenAI, fine-tuning guide (messages, weight, tools); ShareGPT as LLaMA-Factory's `data/README.md` describes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.errors import ConfigError, PromptError
from puna.prompt.message import Message, Tool

IMAGE_MARK = "<image>"
"""Where ShareGPT's texts have a picture."""

_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_OWN = frozenset(
    {"messages", "conversations", "prompt", "chosen", "rejected", "images", "tools", "system", "id", "source", "text"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One line. `where` names it in messages; learnt[i] says whether messages[i] is, if it is an assistant's.

    chosen, rejected   the better and the worse way to go on, of a preference; else empty
    text               a plain text instead of messages, which is learnt from beginning to end; else empty
    facts              the line's other fields, as they stand there
    """

    id: str
    source: str
    where: str
    messages: tuple[Message, ...]
    learnt: tuple[bool, ...]
    tools: tuple[Tool, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    facts: Mapping[str, Any]
    text: str = ""


def read(path: str | Path, *, texts: bool = False) -> Iterator[Chat]:
    """Yields the conversations of a file in order, and plain texts where they are allowed.

    Raises ConfigError when there is no such file, PromptError, naming file, line, field and remedy, for a wrong line.
    """
    file = Path(path)
    for number, document in documents(file):
        where = f"{file}, line {number}"
        try:
            make = _text if texts and "text" in document else _chat
            yield make(document, where, str(document.get("id", number)), file.parent)
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from error


def documents(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the number, from 1, and the object of each line that is not blank. Raises as `read` does."""
    if not file.is_file():
        raise ConfigError(f"data.chats: {file} does not exist; name a file of JSON lines")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise PromptError(f"{file}, line {number}: not JSON ({error}); write one object a line") from error
            if not isinstance(document, dict):
                kind = type(document).__name__
                raise PromptError(f"{file}, line {number}: is of type {kind}; write one object a line")
            yield number, document


def pictures(document: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Yields the files that a line refers to; those of a wrong line may be missing."""
    named = list(document.get("images") or ()) if isinstance(document.get("images"), list) else []
    for key in ("messages", "prompt", "conversations", "chosen", "rejected"):
        turns = document.get(key)
        for turn in [turns] if isinstance(turns, dict) else turns if isinstance(turns, list) else []:
            content = turn.get("content") if isinstance(turn, dict) else None
            named += [_named(part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    for name in named:
        if isinstance(name, str) and not name.startswith("data:"):
            yield folder / name


def _named(part: Mapping[str, Any]) -> object:
    link = part.get("image_url", part.get("image", part.get("path")))
    return link.get("url") if isinstance(link, dict) else link


# One line ---------------------------------------------------------------------------------------------------------


def _text(document: Mapping[str, Any], where: str, name: str, folder: Path) -> Chat:
    text = document["text"]
    if not (isinstance(text, str) and text.strip()):
        raise PromptError("text: is no text or empty; give a text, or remove the line")
    if others := sorted(_OWN & document.keys() - {"id", "source", "text"}):
        raise PromptError(f"text: stands beside {', '.join(others)}; a line is a text or a conversation")
    facts = {key: value for key, value in document.items() if key not in _OWN}
    source = str(document.get("source", ""))
    return Chat(
        id=name,
        source=source,
        where=where,
        messages=(),
        learnt=(),
        tools=(),
        chosen=(),
        rejected=(),
        facts=facts,
        text=text,
    )


def _chat(document: Mapping[str, Any], where: str, name: str, folder: Path) -> Chat:
    shapes = [key for key in ("messages", "conversations", "prompt") if key in document]
    if len(shapes) != 1:
        found = " and ".join(shapes) or f"none of them, but {', '.join(map(str, document)) or 'nothing'}"
        raise PromptError(f"messages: a line has one of messages, conversations and prompt, this one {found}")
    has_chosen, has_rejected = (document.get(key) is not None for key in ("chosen", "rejected"))
    if has_chosen != has_rejected:
        absent, there = ("rejected", "chosen") if has_chosen else ("chosen", "rejected")
        raise PromptError(f"{absent}: is missing; a preference has both, or remove {there}")
    turns = _turns(document, shapes[0], folder)
    messages, learnt = _messages(turns, shapes[0])
    answers = [
        _messages(_answer(document[key], key, folder), key)[0] if has_chosen else () for key in ("chosen", "rejected")
    ]
    _check_order(messages, shapes[0], needs_answer=not has_chosen)
    for key, answer in zip(("chosen", "rejected"), answers, strict=True):
        if has_chosen and answer[0].role != "assistant":
            raise PromptError(f"{key}: begins with a turn of {answer[0].role}; give the assistant's answer")
    return Chat(
        id=name,
        source=str(document.get("source", "")),
        where=where,
        messages=messages,
        learnt=learnt,
        tools=_tools(document.get("tools")),
        chosen=answers[0],
        rejected=answers[1],
        facts={key: value for key, value in document.items() if key not in _OWN},
    )


def _turns(document: Mapping[str, Any], key: str, folder: Path) -> list[dict[str, Any]]:
    """Returns the turns as messages in OpenAI's shape, pictures as data URLs or whole paths."""
    if key == "conversations":
        images = document.get("images") or []
        if not isinstance(images, list):
            raise PromptError(f"images: is {_kind(images)}; give a list of paths or data URLs")
        turns, left = _of_sharegpt(document[key], key, list(images), folder)
        if left:
            raise PromptError(
                f"images: {len(images)} are given and {len(images) - left} marked; write {IMAGE_MARK} where each is"
            )
        system = document.get("system")
        if system is not None and not isinstance(system, str):
            raise PromptError(f"system: is {_kind(system)}; give a string")
        return [{"role": "system", "content": system}, *turns] if system else turns
    value = document[key]
    if key == "prompt" and isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return [_with_pictures(turn, f"{key}[{i}]", folder) for i, turn in enumerate(_list(value, key))]


def _answer(value: object, key: str, folder: Path) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, dict) and "from" in value:
        return _of_sharegpt([value], key, [], folder)[0]
    turns = [value] if isinstance(value, dict) else _list(value, key)
    return [_with_pictures(turn, f"{key}[{i}]", folder) for i, turn in enumerate(turns)]


def _messages(turns: Sequence[dict[str, Any]], key: str) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    messages, learnt = [], []
    for i, turn in enumerate(turns):
        weight = turn.pop("weight", None)
        if weight not in (None, 0, 1) or isinstance(weight, bool):
            raise PromptError(f"{key}[{i}].weight: is {weight!r}; give 0 (not learnt) or 1")
        messages.append(Message.from_dict(turn, where=f"{key}[{i}]"))
        learnt.append(messages[-1].role == "assistant" and weight != 0)
    return tuple(messages), tuple(learnt)


def _check_order(messages: Sequence[Message], key: str, *, needs_answer: bool) -> None:
    for i, message in enumerate(messages):
        if message.role == "system" and i:
            raise PromptError(f"{key}[{i}].role: is system; put the system message first, there is at most one")
        if message.role == "tool" and not (i and messages[i - 1].role in ("assistant", "tool")):
            raise PromptError(f"{key}[{i}].role: is tool, and no call stands before it; add the assistant's call")
    if not messages:
        raise PromptError(f"{key}: is empty; give at least one message")
    if needs_answer and all(message.role != "assistant" for message in messages) and messages[-1].role != "user":
        raise PromptError(f"{key}: has no turn of the assistant; there is nothing to learn from it")


def _tools(value: object) -> tuple[Tool, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError as error:
            raise PromptError(f"tools: is not valid JSON ({error}); give a list of tools") from error
    return tuple(Tool.from_dict(tool, where=f"tools[{i}]") for i, tool in enumerate(_list(value or [], "tools")))


# Shapes -----------------------------------------------------------------------------------------------------------


def _of_sharegpt(value: object, key: str, images: list[Any], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns messages in OpenAI's shape, and how many images no mark took."""
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(_list(value, key)):
        where = f"{key}[{i}]"
        if not isinstance(turn, dict):
            raise PromptError(f"{where}: is {_kind(turn)}; give an object")
        speaker, text = turn.get("from"), turn.get("value")
        if speaker not in _SPEAKERS:
            raise PromptError(f"{where}.from: is {speaker!r}; expected one of {', '.join(_SPEAKERS)}")
        if not isinstance(text, str):
            raise PromptError(f"{where}.value: is {_kind(text)}; give a string")
        if unknown := sorted(turn.keys() - {"from", "value", "weight"}):
            raise PromptError(f"{where}.{unknown[0]}: is not supported here; leave it out (known: from, value, weight)")
        message: dict[str, Any] = {"role": _SPEAKERS[speaker], "weight": turn.get("weight")}
        if speaker == "function_call":
            message |= {"tool_calls": [{"function": call} for call in _calls(text, f"{where}.value")]}
        else:
            message |= {"content": _marked(text, images, where, folder)}
        messages.append(message)
    return messages, len(images)


def _calls(text: str, where: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PromptError(f'{where}: is not valid JSON ({error}); give {{"name", "arguments"}}') from error
    return value if isinstance(value, list) else [value]


def _marked(text: str, images: list[Any], where: str, folder: Path) -> object:
    """Returns the content of a text in which marks stand for the next images, which are taken off the list."""
    pieces = text.split(IMAGE_MARK)
    if len(pieces) == 1:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        if not images:
            raise PromptError(f"{where}.value: has more {IMAGE_MARK} marks than there are images; add them to images")
        parts.append({"type": "image", "image": _located(images.pop(0), f"{where}.value", folder)})
        parts.append({"type": "text", "text": piece})
    return [part for part in parts if part.get("text") != ""]


def _with_pictures(turn: object, where: str, folder: Path) -> dict[str, Any]:
    """Returns a message whose pictures are data URLs or whole paths."""
    if not isinstance(turn, dict):
        raise PromptError(f"{where}: is {_kind(turn)}; give an object")
    content = turn.get("content")
    if not isinstance(content, list):
        return dict(turn)
    parts = [_picture(part, f"{where}.content[{i}]", folder) for i, part in enumerate(content)]
    return turn | {"content": parts}


def _picture(part: Any, where: str, folder: Path) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    if part["type"] == "image":
        return {"type": "image", "image": _located(part.get("image", part.get("path")), f"{where}.image", folder)}
    link = part.get("image_url")
    url = link.get("url") if isinstance(link, dict) else link
    return {"type": "image_url", "image_url": {"url": _located(url, f"{where}.image_url", folder)}}


def _located(source: object, where: str, folder: Path) -> str:
    """Returns a data URL as it is, and a path within `folder` as a whole one."""
    if not isinstance(source, str):
        raise PromptError(f"{where}: is {_kind(source)}; give a data URL or a path")
    if source.startswith(("data:", "http://", "https://")):
        return source
    root = folder.resolve()
    path = (root / source).resolve()
    if not path.is_relative_to(root):
        raise PromptError(f"{where}: {source!r} lies outside the folder of the file; put pictures beside it or below")
    return str(path)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"{where}: is {_kind(value)}; give a list")
    return value


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
