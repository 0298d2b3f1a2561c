"""POST /v1/responses: OpenAI's Responses API over chat, without memory.

In: values of `responses_schema`. Out: chat requests, with what their fields were called, and answers.
Not here: what a field means to the model (`convert`), events (`responses_stream`), HTTP (`endpoint`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Send

from puna.serve import making
from puna.serve.conversation import Conversation, events, named
from puna.serve.convert import Refusal
from puna.serve.endpoint import Endpoint
from puna.serve.responses_schema import (
    AllowedTools,
    AnsweredRefusal,
    AnsweredText,
    CallItem,
    CallOutputItem,
    InputImage,
    InputItem,
    InputText,
    JsonSchemaFormat,
    MessageItem,
    NamedFunction,
    ResponsesRequest,
)
from puna.serve.responses_stream import GrowingResponse
from puna.serve.schema import ChatRequest
from puna.serve.sending import send_document, send_events
from puna.serve.state import State, new_id
from puna.serve.stream import named_event

HARMLESS: dict[str, tuple[Any, ...]] = {
    "store": (None, False),
    "previous_response_id": (None,),
    "conversation": (None,),
    "prompt": (None,),
    "background": (None, False),
    "truncation": (None, "disabled"),
    "service_tier": (None, "auto", "default"),
}
"""Fields that are read only to be refused, and their values that ask for nothing."""

_STATELESS = "nothing is stored here: send the whole conversation as input"
_REASONS = {
    "store": "nothing is stored here: leave it out",
    "background": "nothing is stored here: leave it out, and stream",
    "prompt": "no templates are stored here: send instructions and input",
    "truncation": "the input is never cut: send what fits",
    "service_tier": "there is one service here: leave it out",
}
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
_SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "stop", "parallel_tool_calls", "stream", "user", "safety_identifier"),
    "prompt_cache_key",
)


def routes(state: State) -> list[Route]:
    """Returns this route."""
    return [Route("/v1/responses", Endpoint(state, ResponsesRequest, _answer), methods=["POST"])]


async def _answer(state: State, asked: ResponsesRequest, send: Send) -> None:
    request, names = chat_request(asked)
    with named(names):
        async with making.chat(state, request) as made:
            name = state.named(asked.model)
            growing = GrowingResponse(asked, new_id("resp_"), model=name, clock=state.clock, new_id=new_id)
            if asked.stream:
                await send_events(state.watch, send, events(made, growing), failed=_failed(growing))
            else:
                async for _ in events(made, growing):
                    pass
                await send_document(send, growing.response)


def _failed(growing: GrowingResponse) -> Callable[[Refusal], bytes]:
    return lambda refusal: b"".join(map(named_event, growing.fail(refusal.status, refusal.body.message)))


def chat_request(asked: ResponsesRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """Returns the chat request that a request stands for, and the client's names of its fields. Raises Refusal."""
    for name, values in HARMLESS.items():
        if (value := getattr(asked, name)) not in values:
            raise Refusal(400, f"{name} is {value!r:.100}, but {_REASONS.get(name, _STATELESS)}", param=name)
    conversation = _conversation(asked)
    fields: dict[str, Any] = {name: getattr(asked, name) for name in _SAME} | {"messages": conversation.messages}
    fields["max_completion_tokens"] = asked.max_output_tokens
    if asked.top_logprobs or "message.output_text.logprobs" in (asked.include or ()):
        fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.tools is not None:
        fields["tools"] = [_tool(tool) for tool in asked.tools]
        conversation.names |= {f"tools[{i}].function": f"tools[{i}]" for i in range(len(asked.tools))}
    if asked.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(asked.tool_choice)
    if asked.text is not None and asked.text.format is not None:
        fields["response_format"] = _response_format(asked.text.format)
    return ChatRequest(**fields), _NAMES | conversation.names


def read_item(document: Mapping[str, Any], where: str) -> InputItem:
    """Returns an item of the input. One without a type is a message. Raises Refusal."""
    try:
        item: InputItem = msgspec.convert({"type": "message"} | dict(document), type=InputItem)
        return item
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        param = where + place.rstrip("`")
        raise Refusal(400, f"{param}: {problem}", param=param) from error


def _conversation(asked: ResponsesRequest) -> Conversation:
    conversation = Conversation()
    if asked.instructions is not None:
        conversation.turn("system", "instructions", asked.instructions)
    if isinstance(asked.input, str):
        conversation.turn("user", "input", asked.input)
        return conversation
    for i, document in enumerate(asked.input):
        where = f"input[{i}]"
        match read_item(document, where):
            case MessageItem(role=role, content=content):
                conversation.turn(role, where, content if isinstance(content, str) else None)
                if not isinstance(content, str):
                    _parts(conversation, f"{where}.content", content)
            case CallItem(call_id=call_id, name=name, arguments=arguments):
                if not conversation.messages or conversation.messages[-1]["role"] != "assistant":
                    conversation.turn("assistant", where)
                conversation.call(where, call_id, name, arguments)
            case CallOutputItem(call_id=call_id, output=output):
                conversation.turn("tool", where, output if isinstance(output, str) else None, tool_call_id=call_id)
                if not isinstance(output, str):
                    _parts(conversation, f"{where}.output", output)
    if not asked.input:
        raise Refusal(400, "input is empty: give a text or at least one item", param="input")
    return conversation


def _parts(conversation: Conversation, where: str, parts: Any) -> None:
    for i, part in enumerate(parts):
        here = f"{where}[{i}]"
        match part:
            case InputText(text=text) | AnsweredText(text=text) | AnsweredRefusal(refusal=text):
                conversation.text(here, text)
            case InputImage(image_url=url):
                conversation.image(f"{here}.image_url", url)


def _tool(tool: Any) -> dict[str, Any]:
    given = {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def _tool_choice(choice: Any) -> Any:
    match choice:
        case NamedFunction(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedTools(mode=mode, tools=tools):
            names = [{"type": "function", "function": {"name": tool.name}} for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}
    return choice


def _response_format(wanted: Any) -> dict[str, Any]:
    if not isinstance(wanted, JsonSchemaFormat):
        return {"type": wanted.__struct_config__.tag}
    given = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict, "description": wanted.description}
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if value is not None}}
