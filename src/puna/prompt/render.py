"""A conversation to the prompt that the model reads: ids, and the tiles of its pictures.

In: messages and tool definitions. Out: `Prompt(ids, tiles)`. Not here: sampling, stopping, reading the reply (`parse`).

A turn is header_start, role, header_end, two newlines, content, and an end token. The end is eom for a tool's result
and for an assistant that calls tools (the conversation goes on), eot otherwise. Tool results have the role "ipython".
Texts are taken as they are: nothing is trimmed, and the names of special tokens in them stay plain text.

Where this differs from Meta's `chat_format` on purpose:

- several calls of one turn form one list, `[f(a="x"), g(b=1)]`, as Meta's prompt format shows; its code writes two
- strings in calls are escaped, so quotes, backslashes and line ends survive; Meta's code writes them raw
- dictionaries in calls are Python, `{"k": 1}`; Meta's code writes `{k=1}`, which no parser reads
- JSON calls have no `"type"` and keep letters outside ASCII readable; several calls are a JSON list

and from Hugging Face's template: turns of calls and results end with eom, not eot, and results are not quoted again.

Source: llama_models 0.3.0, `models/llama4/chat_format.py` and `prompt_format.md`.
"""

import json
import keyword
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, get_args

import torch
from PIL import Image
from torch import Tensor

from puna.config import VisionConfig
from puna.errors import PromptError
from puna.prompt.message import ImagePart, Message, Part, TextPart, Tool, ToolCall
from puna.prompt.tiles import cut, tile_ids
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.vocab import END_OF_MESSAGE, END_OF_TURN, HEADER_END, HEADER_START, special_id

ToolStyle = Literal["pythonic", "json"]
ToolsIn = Literal["system", "user"]

PYTHONIC_RULES = """\
You can call the functions listed below when they help with a request.

- To call, answer with a list of calls alone: [first_name(argument=value, other="text"), second_name(argument=value)]
- Put independent calls into the same list. Use only functions and arguments from the list, and give every required one.
- If a required value is unknown, ask for it. If no function fits, answer in words without a call.
- When results come back, answer from them briefly in words, or make the next call.

The functions, in JSON:

"""

JSON_RULES = """\
You can call the functions listed below when they help with a request.

- To call, answer with nothing but JSON: {"name": function name, "parameters": {argument name: value}}
- For independent calls, answer with a JSON list of such objects. Write values, not variables.
- Use only functions and arguments from the list, and give every required one.
- If a required value is unknown, ask for it. If no function fits, answer in words without a call.
- When results come back, answer from them briefly in words, or make the next call.

The functions, in JSON:

"""


class Prompt(NamedTuple):
    """What the model reads. `tiles` is float32 [I 3 size size] of all pictures in order, None when there is none."""

    ids: list[int]
    tiles: Tensor | None


class Renderer:
    """Turns conversations into prompts for one tokenizer and, where the checkpoint sees, one vision tower."""

    def __init__(self, tokenizer: Tokenizer, vision: VisionConfig | None) -> None:
        self._tokenizer = tokenizer
        self._vision = vision

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        tool_style: ToolStyle = "pythonic",
        tools_in: ToolsIn = "system",
        reply: bool = True,
    ) -> Prompt:
        """Returns begin_of_text and one turn per message, then the assistant's header if `reply`.

        Tool definitions follow the content of the leading system message (one is added if there is none), or that of
        the first user message. Results of parallel calls that carry call ids are put in the order of the
        calls, since only their order tells the model which is which.

        Raises PromptError, naming the message and part, for a picture without a vision tower, a result of an unknown
        call, tools without a user message to hold them, an unknown style, and special tokens that the vocabulary lacks.
        """
        _require_one_of("tool_style", tool_style, get_args(ToolStyle))
        _require_one_of("tools_in", tools_in, get_args(ToolsIn))
        ordered = _results_in_call_order(messages)
        if tools:
            ordered = _with_tools(ordered, tool_rules(tools, tool_style), tools_in)
        ids, tiles = [self._tokenizer.bos_id], []
        for index, message in enumerate(ordered, start=len(messages) - len(ordered)):
            turn = self._turn(message, tool_style, f"messages[{index}]")
            ids += turn.ids
            tiles += [] if turn.tiles is None else [turn.tiles]
        if reply:
            ids += self.header("assistant")
        return Prompt(ids, torch.cat(tiles) if tiles else None)

    def turn(self, message: Message, *, tool_style: ToolStyle = "pythonic") -> Prompt:
        """Returns one message from its header to its end token, as `render` places it after begin_of_text."""
        return self._turn(message, tool_style, "message")

    def text(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """Returns begin_of_text, the pictures, and `text` to be continued. Raises PromptError as `render` does."""
        content: tuple[Part, ...] = (*(ImagePart(image) for image in images), TextPart(text))
        body = self._content(content, "text")
        return Prompt([self._tokenizer.bos_id, *body.ids], body.tiles)

    def header(self, role: str) -> list[int]:
        """Returns the ids that open a turn of `role`; a tool is called "ipython"."""
        name = self._tokenizer.encode("ipython" if role == "tool" else role)
        return [self._special(HEADER_START), *name, self._special(HEADER_END), *self._tokenizer.encode("\n\n")]

    def _turn(self, message: Message, tool_style: ToolStyle, where: str) -> Prompt:
        body = self._content(message.content, f"{where}.content")
        calls = self._tokenizer.encode(call_text(message.tool_calls, tool_style)) if message.tool_calls else []
        goes_on = message.role == "tool" or bool(message.tool_calls)
        end = self._special(END_OF_MESSAGE if goes_on else END_OF_TURN)
        return Prompt([*self.header(message.role), *body.ids, *calls, end], body.tiles)

    def _content(self, content: Sequence[Part], where: str) -> Prompt:
        ids: list[int] = []
        tiles: list[Tensor] = []
        for index, part in enumerate(content):
            if isinstance(part, TextPart):
                ids += self._tokenizer.encode(part.text)
            else:
                picture = self._picture(part.image, f"{where}[{index}]")
                ids += picture.ids
                tiles += [] if picture.tiles is None else [picture.tiles]
        return Prompt(ids, torch.cat(tiles) if tiles else None)

    def _picture(self, image: Image.Image, where: str) -> Prompt:
        if self._vision is None:
            raise PromptError(f"{where}: is an image, but this checkpoint has no vision tower; send text only")
        try:
            tiles = cut(image, tile_size=self._vision.tile_size, max_tiles=self._vision.max_tiles)
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from error
        return Prompt(tile_ids(tiles.grid, self._vision.tokens_per_tile, self._tokenizer.special), tiles.pixels)

    def _special(self, name: str) -> int:
        return special_id(self._tokenizer.special, name)


def _require_one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PromptError(f"{field}: is {value!r}; expected one of {', '.join(known)}")


# Tool calls -------------------------------------------------------------------------------------------------------


def call_text(calls: Sequence[ToolCall], style: ToolStyle) -> str:
    """Returns the text of one or more calls as a model writes them; `parse` reads both styles back.

    Pythonic is one list of calls with keyword arguments. JSON is one object with "name" and "parameters", and for
    several calls a list of them.
    """
    if style == "pythonic":
        return f"[{', '.join(_pythonic_call(call) for call in calls)}]"
    documents = [{"name": call.name, "parameters": call.arguments} for call in calls]
    return json.dumps(documents[0] if len(documents) == 1 else documents, ensure_ascii=False)


def _pythonic_call(call: ToolCall) -> str:
    """Returns `name(key=value, ...)`. Keys that are no Python names travel as `**{"key": value}` at the end."""
    named = {key: value for key, value in call.arguments.items() if is_argument_name(key)}
    others = {key: value for key, value in call.arguments.items() if key not in named}
    arguments = [f"{key}={literal(value)}" for key, value in named.items()]
    return f"{call.name}({', '.join(arguments + ([f'**{literal(others)}'] if others else []))})"


def is_argument_name(key: str) -> bool:
    """Says whether Python takes `key` as a keyword argument and keeps it as it is."""
    plain = re.fullmatch(r"\w+", key) is not None and unicodedata.normalize("NFKC", key) == key
    return plain and key.isidentifier() and not keyword.iskeyword(key)


def literal(value: object) -> str:
    """Returns `value` as a Python literal, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    return repr(value)


# Tool definitions -------------------------------------------------------------------------------------------------


def tool_rules(tools: Sequence[Tool], style: ToolStyle) -> str:
    """Returns the instructions and definitions that make a model call `tools`, in our own words.

    Pythonic lists bare definitions whose parameters have the type "dict", as Meta's prompt format does; JSON lists
    OpenAI's objects unchanged, one after the other, as Hugging Face's template does.
    """
    if style == "pythonic":
        return PYTHONIC_RULES + _indented([_definition(tool) for tool in tools])
    return JSON_RULES + "\n\n".join(_indented(tool.to_dict()) for tool in tools)


def _definition(tool: Tool) -> Mapping[str, object]:
    parameters = {"type": "dict", "required": [], "properties": {}} | tool.parameters | {"type": "dict"}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def _indented(document: object) -> str:
    return json.dumps(document, indent=4, ensure_ascii=False)


def _with_tools(messages: Sequence[Message], rules: str, tools_in: ToolsIn) -> list[Message]:
    """Returns `messages` with `rules` at the end of the leading system message, or of the first user message."""
    roles = [message.role for message in messages]
    if tools_in == "system" and roles[:1] != ["system"]:
        return [Message("system", (TextPart(rules),)), *messages]
    if tools_in not in roles:
        raise PromptError('tools_in: is "user", but there is no user message; add one or use "system"')
    index = roles.index(tools_in)
    holder = messages[index]
    content = (*holder.content, TextPart(f"\n\n{rules}"))
    return [*messages[:index], Message(holder.role, content), *messages[index + 1 :]]


# Results ----------------------------------------------------------------------------------------------------------


def _results_in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Returns `messages` with each run of tool results in the order of the calls that they answer."""
    ordered: list[Message] = []
    for are_results, run in groupby(messages, key=lambda message: message.role == "tool"):
        turns = list(run)
        ordered += _sorted_results(turns, ordered[-1].tool_calls if ordered else ()) if are_results else turns
    return ordered


def _sorted_results(results: list[Message], calls: Sequence[ToolCall]) -> list[Message]:
    """Returns `results` sorted by `calls`, or as they are if some result or every call has no id."""
    place = {call.id: index for index, call in enumerate(calls) if call.id is not None}
    if not place or any(result.call_id is None for result in results):
        return results
    for result in results:
        if result.call_id not in place:
            known = ", ".join(place)
            raise PromptError(
                f"tool_call_id: {result.call_id!r} is no call of the message before; expected one of {known}"
            )
    return sorted(results, key=lambda result: place[str(result.call_id)])
