"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API over chat.

In: values of `messages_schema`. Out: chat requests, with what their fields were called, and answers.
Not here: what a field means to the model (`convert`), events (`messages_stream`), HTTP (`endpoint`).

Where the two APIs differ: the prompt's remembered tokens are not among `input_tokens`; results of tools stand within a
person's turn; the last turn may be an assistant's, and the answer goes on from it.
"""

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route
from starlette.types import Send

from puna.serve import making
from puna.serve import messages_schema as shapes
from puna.serve.conversation import Conversation, events, named
from puna.serve.convert import Refusal
from puna.serve.endpoint import ANTHROPIC_KINDS, Endpoint
from puna.serve.messages_stream import GrowingMessage
from puna.serve.schema import ChatRequest
from puna.serve.sending import send_document, send_events
from puna.serve.state import State, new_id
from puna.serve.stream import named_event

_NAMES = {
    "response_format": "output_config.format.schema",
    "response_format.json_schema.schema": "output_config.format.schema",
    "stop": "stop_sequences",
    "max_completion_tokens": "max_tokens",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def routes(state: State) -> list[Route]:
    """Returns these routes."""
    return [
        Route("/v1/messages", Endpoint(state, shapes.MessagesRequest, _answer), methods=["POST"]),
        Route("/v1/messages/count_tokens", Endpoint(state, shapes.CountRequest, _count), methods=["POST"]),
    ]


async def _answer(state: State, asked: shapes.MessagesRequest, send: Send) -> None:
    request, names = chat_request(asked)
    with named(names):
        async with making.chat(state, request) as made:
            growing = GrowingMessage(new_id("msg_"), state.named(asked.model), made.usage())
            if asked.stream:
                await send_events(
                    state.watch, send, events(made, growing), failed=_failed, ping=named_event(shapes.Ping())
                )
            else:
                async for _ in events(made, growing):
                    pass
                await send_document(send, growing.message)


async def _count(state: State, asked: shapes.CountRequest, send: Send) -> None:
    request, names = chat_request(asked)
    with named(names):
        n_tokens = await making.prompt_len(state, request)
    await send_document(send, shapes.TokenCount(input_tokens=n_tokens))


def _failed(refusal: Refusal) -> bytes:
    kind = ANTHROPIC_KINDS.get(refusal.status, "invalid_request_error")
    return named_event(shapes.MessagesError(error=shapes.ErrorDetail(type=kind, message=refusal.body.message)))


def chat_request(asked: shapes.CountRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """Returns the chat request that a request stands for, and the client's names of its fields."""
    conversation = _conversation(asked)
    fields: dict[str, Any] = {"model": asked.model, "messages": conversation.messages}
    if asked.tools is not None:
        fields["tools"] = [_tool(tool) for tool in asked.tools]
        for i in range(len(asked.tools)):
            conversation.names |= {
                f"tools[{i}].function": f"tools[{i}]",
                f"tools[{i}].function.parameters": f"tools[{i}].input_schema",
            }
    if asked.tool_choice is not None:
        fields |= _tool_choice(asked.tool_choice)
    if asked.output_config is not None and asked.output_config.format is not None:
        schema = {"name": "answer", "schema": asked.output_config.format.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if asked.messages and isinstance(asked.messages[-1], shapes.AssistantTurn):
        fields["continue_final_message"] = True
    if isinstance(asked, shapes.MessagesRequest):
        fields |= {"max_tokens": asked.max_tokens, "stop": asked.stop_sequences, "stream": asked.stream}
        fields |= {name: getattr(asked, name) for name in ("temperature", "top_p", "top_k")}
    return ChatRequest(**fields), _NAMES | conversation.names


def _conversation(asked: shapes.CountRequest) -> Conversation:
    conversation = Conversation()
    if asked.system and isinstance(asked.system, str):
        conversation.turn("system", "system", asked.system)
    elif asked.system:
        conversation.turn("system", "system")
        for i, block in enumerate(asked.system):
            conversation.text(f"system[{i}]", block.text)
    for i, turn in enumerate(asked.messages):
        where = f"messages[{i}]"
        match turn:
            case shapes.UserTurn():
                _user_turn(conversation, where, turn.content)
            case shapes.AssistantTurn():
                _turn(conversation, "assistant", where, turn.content)
            case shapes.SystemTurn():
                _turn(conversation, "system", where, turn.content)
    return conversation


def _user_turn(conversation: Conversation, where: str, content: Any) -> None:
    """Adds what a person says; each result of a tool within it becomes a message of its own, where it stands."""
    if isinstance(content, str):
        conversation.turn("user", where, content)
        return
    is_open = False
    for i, block in enumerate(content):
        here = f"{where}.content[{i}]"
        if isinstance(block, shapes.ToolResultBlock):
            _tool_result(conversation, here, block)
            is_open = False
            continue
        if not is_open:
            conversation.turn("user", where)
            is_open = True
        _part(conversation, here, block)
    if not content:
        conversation.turn("user", where)


def _tool_result(conversation: Conversation, where: str, block: shapes.ToolResultBlock) -> None:
    conversation.turn("tool", where, tool_call_id=block.tool_use_id)
    if block.is_error:
        conversation.text(where, "Error: ")
    if isinstance(block.content, str):
        conversation.text(f"{where}.content", block.content)
    else:
        for i, part in enumerate(block.content or ()):
            _part(conversation, f"{where}.content[{i}]", part)


def _turn(conversation: Conversation, role: str, where: str, content: Any) -> None:
    if isinstance(content, str):
        conversation.turn(role, where, content)
        return
    conversation.turn(role, where)
    for i, block in enumerate(content):
        _part(conversation, f"{where}.content[{i}]", block)


def _part(conversation: Conversation, where: str, block: Any) -> None:
    match block:
        case shapes.TextBlock(text=text) | shapes.Instruction(text=text):
            conversation.text(where, text)
        case shapes.ImageBlock(source=shapes.Base64Source(media_type=kind, data=data)):
            conversation.image(f"{where}.source", f"data:{kind};base64,{data}")
        case shapes.ImageBlock(source=shapes.UrlSource(url=url)):
            if not url.startswith("https:") and not url.startswith("http:"):
                raise Refusal(400, f"{where}.source.url is no web address: send base64", param=f"{where}.source.url")
            conversation.image(f"{where}.source.url", url)
        case shapes.ToolUseBlock(id=call_id, name=name, input=arguments):
            conversation.call(where, call_id, name, arguments)


def _tool(tool: shapes.ToolDefinition) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    function |= {} if tool.description is None else {"description": tool.description}
    function |= {} if tool.strict is None else {"strict": tool.strict}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> dict[str, Any]:
    if isinstance(choice, shapes.NamedChoice):
        fields: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
    else:
        fields = {"tool_choice": _CHOICES[choice.__struct_config__.tag]}
    if not isinstance(choice, shapes.NoChoice) and choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields
