"""What travels at /v1/messages, as values. As in `schema`, a field that is not listed is an error.

Not here: meaning (`messages`).

Source: Anthropic's API reference (messages, count tokens, streaming, errors).
"""

from typing import Any, Literal

import msgspec

from puna.serve.schema import Received

# Requests ---------------------------------------------------------------------------------------------------------


class CacheControl(Received, kw_only=True, frozen=True):
    """Where a client wants a cache. Accepted: whatever prompts have in common is remembered here anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Received, kw_only=True, frozen=True, tag="text"):
    """Text."""

    text: str
    # accepted
    cache_control: CacheControl | None = None
    citations: None = None


class Instruction(Received, kw_only=True, frozen=True):
    """Text of a system's turn, where nothing but text may be."""

    type: Literal["text"]
    text: str
    # accepted
    cache_control: CacheControl | None = None
    citations: None = None


class Base64Source(Received, kw_only=True, frozen=True, tag="base64"):
    """A picture's file."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Received, kw_only=True, frozen=True, tag="url"):
    """A picture's address."""

    url: str


class ImageBlock(Received, kw_only=True, frozen=True, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource
    # accepted
    cache_control: CacheControl | None = None


class ToolUseBlock(Received, kw_only=True, frozen=True, tag="tool_use"):
    """A call that the model made before."""

    id: str
    name: str
    input: dict[str, Any]
    # accepted
    cache_control: CacheControl | None = None


class ToolResultBlock(Received, kw_only=True, frozen=True, tag="tool_result"):
    """What a call gave. With `is_error`, the model reads "Error: " before it."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock] | None = None
    is_error: bool | None = None
    # accepted
    cache_control: CacheControl | None = None


class UserTurn(Received, kw_only=True, frozen=True, tag_field="role", tag="user"):
    """What a person or a tool says."""

    content: str | list[TextBlock | ImageBlock | ToolResultBlock]


class AssistantTurn(Received, kw_only=True, frozen=True, tag_field="role", tag="assistant"):
    """What the model said. As the last turn it is the beginning of the answer."""

    content: str | list[TextBlock | ToolUseBlock]


class SystemTurn(Received, kw_only=True, frozen=True, tag_field="role", tag="system"):
    """Instructions in the middle of a conversation."""

    content: str | list[Instruction]


class ToolDefinition(Received, kw_only=True, frozen=True):
    """A function that the model may call. `input_schema` is a JSON schema of an object."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    # accepted
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # calls are streamed in any case


class AutoChoice(Received, kw_only=True, frozen=True, tag="auto"):
    """The model decides whether it calls."""

    disable_parallel_tool_use: bool = False


class AnyChoice(Received, kw_only=True, frozen=True, tag="any"):
    """The model must call some tool."""

    disable_parallel_tool_use: bool = False


class NamedChoice(Received, kw_only=True, frozen=True, tag="tool"):
    """The model must call this tool."""

    name: str
    disable_parallel_tool_use: bool = False


class NoChoice(Received, kw_only=True, frozen=True, tag="none"):
    """The model must not call."""


class NoThinking(Received, kw_only=True, frozen=True):
    """The only way of thinking that this model has."""

    type: Literal["disabled"]


class JsonFormat(Received, kw_only=True, frozen=True):
    """The answer is a JSON document of this schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Received, kw_only=True, frozen=True):
    """What the answer looks like."""

    format: JsonFormat | None = None


class Metadata(Received, kw_only=True, frozen=True):
    """About the request."""

    user_id: str | None = None


class CountRequest(Received, kw_only=True, frozen=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[UserTurn | AssistantTurn | SystemTurn]
    system: str | list[Instruction] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    output_config: OutputConfig | None = None
    # accepted
    thinking: NoThinking | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountRequest, kw_only=True, frozen=True):
    """POST /v1/messages."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    # accepted
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


# Answers ----------------------------------------------------------------------------------------------------------


class ErrorDetail(msgspec.Struct, kw_only=True, frozen=True):
    """What went wrong."""

    type: str
    message: str


class MessagesError(msgspec.Struct, kw_only=True, frozen=True, tag="error"):
    """The one shape of every error, also as an event of a stream."""

    error: ErrorDetail


class MessageUsage(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens. Of the prompt, `cache_read_input_tokens` were remembered; `input_tokens` are the others."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextContent(msgspec.Struct, kw_only=True, frozen=True, tag="text"):
    """Text of an answer."""

    text: str
    citations: None = None


class ToolUseContent(msgspec.Struct, kw_only=True, frozen=True, tag="tool_use"):
    """A call. In a stream its input begins empty and comes as pieces of JSON."""

    id: str
    name: str
    input: dict[str, Any]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class Message(msgspec.Struct, kw_only=True, frozen=True, tag="message"):
    """The answer. Within a stream's first event it has no content yet."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[TextContent | ToolUseContent]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of count_tokens: the whole prompt, special and patch tokens included."""

    input_tokens: int


# Events -----------------------------------------------------------------------------------------------------------


class MessageStart(msgspec.Struct, kw_only=True, frozen=True, tag="message_start"):
    """The first event."""

    message: Message


class Ping(msgspec.Struct, kw_only=True, frozen=True, tag="ping"):
    """Nothing new."""


class BlockStart(msgspec.Struct, kw_only=True, frozen=True, tag="content_block_start"):
    """A piece of content begins."""

    index: int
    content_block: TextContent | ToolUseContent


class MoreText(msgspec.Struct, kw_only=True, frozen=True, tag="text_delta"):
    """More text."""

    text: str


class MoreInput(msgspec.Struct, kw_only=True, frozen=True, tag="input_json_delta"):
    """More of a call's input."""

    partial_json: str


class BlockDelta(msgspec.Struct, kw_only=True, frozen=True, tag="content_block_delta"):
    """More of a piece of content."""

    index: int
    delta: MoreText | MoreInput


class BlockStop(msgspec.Struct, kw_only=True, frozen=True, tag="content_block_stop"):
    """A piece of content is complete."""

    index: int


class Ending(msgspec.Struct, kw_only=True, frozen=True):
    """Why an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, kw_only=True, frozen=True, tag="message_delta"):
    """The end of the answer, with all counts."""

    delta: Ending
    usage: MessageUsage


class MessageStop(msgspec.Struct, kw_only=True, frozen=True, tag="message_stop"):
    """The last event."""


MessageEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessagesError
