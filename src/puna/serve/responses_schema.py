"""What travels at /v1/responses, as values. As in `schema`, a field that is not listed is an error.

Not here: meaning (`responses`), answers and events (`responses_events`).

Source: OpenAI's API reference (responses).
"""

from typing import Any, Literal

from puna.serve.schema import Received

Status = Literal["in_progress", "completed", "incomplete"]

# Requests ---------------------------------------------------------------------------------------------------------


class InputText(Received, kw_only=True, frozen=True, tag="input_text"):
    """Text."""

    text: str


class InputImage(Received, kw_only=True, frozen=True, tag="input_image"):
    """A picture: a data URL, or another one where these are fetched."""

    image_url: str
    # accepted
    detail: Literal["low", "high", "auto", "original"] | None = None
    file_id: None = None


class AnsweredText(Received, kw_only=True, frozen=True, tag="output_text"):
    """Text that the model wrote before."""

    text: str
    # accepted
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class AnsweredRefusal(Received, kw_only=True, frozen=True, tag="refusal"):
    """What the model would not do before, in its words."""

    refusal: str


class MessageItem(Received, kw_only=True, frozen=True, tag="message"):
    """A turn. Its type may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | InputImage | AnsweredText | AnsweredRefusal]
    # accepted
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Received, kw_only=True, frozen=True, tag="function_call"):
    """A call that the model made before; `arguments` is JSON."""

    call_id: str
    name: str
    arguments: str
    # accepted
    id: str | None = None
    status: Status | None = None


class CallOutputItem(Received, kw_only=True, frozen=True, tag="function_call_output"):
    """What a call gave."""

    call_id: str
    output: str | list[InputText | InputImage]
    # accepted
    id: str | None = None
    status: Status | None = None


InputItem = MessageItem | CallItem | CallOutputItem


class FunctionTool(Received, kw_only=True, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema of an object."""

    type: Literal["function"]
    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class NamedFunction(Received, kw_only=True, frozen=True, tag="function"):
    """The model must call this function."""

    name: str


class FunctionName(Received, kw_only=True, frozen=True):
    """One of the functions of a request."""

    type: Literal["function"]
    name: str


class AllowedTools(Received, kw_only=True, frozen=True, tag="allowed_tools"):
    """The functions that may be called now."""

    mode: Literal["auto", "required"]
    tools: list[FunctionName]


class TextFormat(Received, kw_only=True, frozen=True, tag="text"):
    """Free text."""


class JsonObjectFormat(Received, kw_only=True, frozen=True, tag="json_object"):
    """Some JSON object."""


class JsonSchemaFormat(Received, kw_only=True, frozen=True, tag="json_schema"):
    """A JSON document of this schema."""

    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class TextOptions(Received, kw_only=True, frozen=True):
    """What the answer's text looks like."""

    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    # accepted
    verbosity: Literal["medium"] | None = None


class Reasoning(Received, kw_only=True, frozen=True):
    """This model answers at once: there is nothing to set."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseStreamOptions(Received, kw_only=True, frozen=True):
    """What a stream holds besides text."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Received, kw_only=True, frozen=True):
    """POST /v1/responses. Items of the input are read by `responses`, since their type may be left out.

    The settings after `include` are not OpenAI's but those that chat has too.
    """

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # accepted
    stream_options: ResponseStreamOptions | None = None
    reasoning: Reasoning | None = None
    max_tool_calls: int | None = None  # of tools that a server runs: there are none
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # refused, but for values that ask for nothing
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    truncation: str | None = None
    service_tier: str | None = None
