"""What stands behind the fields that `schema` leaves loose, as values that only describe: for /openapi.json.

In: nothing. Out: types, by request and field. Nothing here reads anything: chat's messages and tools are read by
`puna.prompt.message`, its settings by `options`, items by `responses`. A run of schemathesis over the document holds
these descriptions against what is read.
Not here: numbers' ranges (`openapi_ranges`).
"""

from typing import Any, Literal

import msgspec

from puna.guard.guard import Point
from puna.serve.responses_schema import InputItem
from puna.serve.schema import ChatChunkChoice, Chunk, CompletionChoice, Received


class Described(msgspec.Struct, kw_only=True, frozen=True):
    """An object that may hold other keys where their values are empty."""


class ChatText(Described, kw_only=True, frozen=True, tag="text"):
    """Text."""

    text: str


class ChatImageUrl(Received, kw_only=True, frozen=True):
    """Where a picture is: a data URL, or another one where these are fetched. `detail` changes nothing."""

    url: str
    detail: str | None = None


class ChatImage(Received, kw_only=True, frozen=True, tag="image_url"):
    """A picture."""

    image_url: str | ChatImageUrl


class ChatCall(Described, kw_only=True, frozen=True):
    """What is called; `arguments` is JSON of an object, or the object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ChatToolCall(Described, kw_only=True, frozen=True):
    """A call that the model made before."""

    function: ChatCall
    id: str | None = None
    type: Literal["function"] = "function"


class ChatSystemTurn(Described, kw_only=True, frozen=True, tag_field="role", tag="system"):
    """Instructions."""

    content: str | list[ChatText | ChatImage] | None = None


class ChatDeveloperTurn(Described, kw_only=True, frozen=True, tag_field="role", tag="developer"):
    """Instructions."""

    content: str | list[ChatText | ChatImage] | None = None


class ChatUserTurn(Described, kw_only=True, frozen=True, tag_field="role", tag="user"):
    """What a person says."""

    content: str | list[ChatText | ChatImage] | None = None


class ChatAssistantTurn(Described, kw_only=True, frozen=True, tag_field="role", tag="assistant"):
    """What the model said."""

    content: str | list[ChatText | ChatImage] | None = None
    tool_calls: list[ChatToolCall] | None = None


class ChatToolTurn(Described, kw_only=True, frozen=True, tag_field="role", tag="tool"):
    """What a call gave."""

    content: str | list[ChatText | ChatImage] | None = None
    tool_call_id: str | None = None


ChatTurn = ChatSystemTurn | ChatDeveloperTurn | ChatUserTurn | ChatAssistantTurn | ChatToolTurn


class ChatFunction(Described, kw_only=True, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema of an object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Described, kw_only=True, frozen=True):
    """A definition."""

    function: ChatFunction
    type: Literal["function"] = "function"


class FreeText(Received, kw_only=True, frozen=True, tag="text"):
    """Whatever the model writes."""


class JsonObject(Received, kw_only=True, frozen=True, tag="json_object"):
    """Some JSON object."""


class NamedSchema(Received, kw_only=True, frozen=True):
    """A JSON schema, which answers follow to the letter, strict or not."""

    schema: dict[str, Any]
    name: Any = None
    description: Any = None
    strict: Any = None


class JsonDocument(Received, kw_only=True, frozen=True, tag="json_schema"):
    """A JSON document of a schema."""

    json_schema: NamedSchema


class ChatFunctionName(msgspec.Struct, kw_only=True, frozen=True):
    """A function of the request."""

    name: str


class ChatNamed(msgspec.Struct, kw_only=True, frozen=True, tag="function"):
    """One tool."""

    function: ChatFunctionName


class ChatAllowed(msgspec.Struct, kw_only=True, frozen=True):
    """The tools that may be called now, at least one."""

    mode: Literal["auto", "required"]
    tools: list[ChatNamed]


class ChatAllowedTools(msgspec.Struct, kw_only=True, frozen=True, tag="allowed_tools"):
    """Some of the tools."""

    allowed_tools: ChatAllowed


class TemplateOptions(Received, kw_only=True, frozen=True):
    """How the prompt is written."""

    tools_in_user_message: bool | msgspec.UnsetType = msgspec.UNSET
    tool_style: Literal["pythonic", "json"] | msgspec.UnsetType = msgspec.UNSET


class ShieldParams(Received, kw_only=True, frozen=True):
    """Where the last message stands."""

    point: Point | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(Chunk, kw_only=True, frozen=True):
    """One event of a chat's stream. The last one with usage has no choices."""

    choices: list[ChatChunkChoice]


class CompletionChunk(Chunk, kw_only=True, frozen=True):
    """One event of a plain completion's stream. The last one with usage has no choices."""

    choices: list[CompletionChoice]


_FORMAT = FreeText | JsonObject | JsonDocument | None

SHAPES: dict[tuple[str, str], Any] = {
    ("ChatRequest", "messages"): list[ChatTurn],
    ("ChatRequest", "tools"): list[ChatTool] | None,
    ("ChatRequest", "tool_choice"): Literal["none", "auto", "required"] | ChatNamed | ChatAllowedTools | None,
    ("ChatRequest", "response_format"): _FORMAT,
    ("ChatRequest", "chat_template_kwargs"): TemplateOptions | None,
    ("CompletionRequest", "response_format"): _FORMAT,
    ("TokenizeRequest", "messages"): list[ChatTurn] | None,
    ("TokenizeRequest", "tools"): list[ChatTool] | None,
    ("ModerationRequest", "input"): str | list[str | ChatText | ChatImage],
    ("ShieldRequest", "messages"): list[ChatTurn],
    ("ShieldRequest", "params"): ShieldParams | None,
    ("ResponsesRequest", "input"): str | list[InputItem],
}
"""The type that stands for a looser one, by request and field."""

EMPTY_TOO = (("ChatAssistantTurn", "tool_calls"), ("ChatFunction", "parameters"), ("ChatFunction", "strict"))
"""Fields that may hold any of `EMPTY` besides, by value and field."""

UNTAGGED = ("MessageItem",)
"""Values whose type may be left out."""

EMPTY: list[Any] = [None, "", [], {}, False, 0]
"""What a key that is not known may hold: it says nothing, so it is not missed."""
