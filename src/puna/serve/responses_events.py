"""What /v1/responses answers, as values: the whole response, its items, and the events of a stream.

Not here: requests (`responses_schema`), which event follows which (`responses`).

Source: OpenAI's API reference (responses, streaming events).
"""

from typing import Any, Literal

from msgspec import Struct

from puna.serve.responses_schema import (
    AllowedTools,
    FunctionTool,
    NamedFunction,
    Reasoning,
    Status,
    TextOptions,
)


class OutputTop(Struct, kw_only=True, frozen=True):
    """One of the most probable tokens at a place. A special token stands for no text and has no bytes."""

    token: str
    bytes: list[int]
    logprob: float


class OutputLogprob(OutputTop, kw_only=True, frozen=True):
    """One token of an answer and what else was probable."""

    top_logprobs: list[OutputTop]


class OutputText(Struct, kw_only=True, frozen=True, tag="output_text"):
    """Text of an answer."""

    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[OutputLogprob]


class OutputMessage(Struct, kw_only=True, frozen=True, tag="message"):
    """What the model says."""

    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Struct, kw_only=True, frozen=True, tag="function_call"):
    """A call that the model asks for; `arguments` is JSON."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputCall


class InputTokensDetails(Struct, kw_only=True, frozen=True):
    """How the prompt was read."""

    cached_tokens: int


class OutputTokensDetails(Struct, kw_only=True, frozen=True):
    """What the answer was for."""

    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True, frozen=True):
    """Tokens of prompt and answer, patch tokens and stop tokens included."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct, kw_only=True, frozen=True):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(Struct, kw_only=True, frozen=True):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt"]
    message: str


class Response(Struct, kw_only=True, frozen=True):
    """The answer, with the settings that it was made with; what was not asked for is null."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float | None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedTools
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float | None
    text: TextOptions
    usage: ResponseUsage | None
    metadata: dict[str, str]
    reasoning: Reasoning
    store: Literal[False] = False
    background: Literal[False] = False
    previous_response_id: None = None
    truncation: Literal["disabled"] = "disabled"
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


# Events -----------------------------------------------------------------------------------------------------------


class Numbered(Struct, kw_only=True, frozen=True):
    """An event. `sequence_number` counts from 0."""

    sequence_number: int


class Created(Numbered, kw_only=True, frozen=True, tag="response.created"):
    """The request was understood."""

    response: Response


class InProgress(Numbered, kw_only=True, frozen=True, tag="response.in_progress"):
    """The answer is being made."""

    response: Response


class Completed(Numbered, kw_only=True, frozen=True, tag="response.completed"):
    """The whole answer."""

    response: Response


class Incomplete(Numbered, kw_only=True, frozen=True, tag="response.incomplete"):
    """The answer as far as it was allowed to come."""

    response: Response


class Failed(Numbered, kw_only=True, frozen=True, tag="response.failed"):
    """Nothing more comes, for a reason that is not the request's."""

    response: Response


class ItemAdded(Numbered, kw_only=True, frozen=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class ItemDone(Numbered, kw_only=True, frozen=True, tag="response.output_item.done"):
    """A whole item."""

    output_index: int
    item: OutputItem


class OfItem(Numbered, kw_only=True, frozen=True):
    """An event within an item."""

    item_id: str
    output_index: int


class OfPart(OfItem, kw_only=True, frozen=True):
    """An event within a part of a message."""

    content_index: int


class PartAdded(OfPart, kw_only=True, frozen=True, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText


class PartDone(OfPart, kw_only=True, frozen=True, tag="response.content_part.done"):
    """A whole part."""

    part: OutputText


class TextDelta(OfPart, kw_only=True, frozen=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[OutputLogprob]


class TextDone(OfPart, kw_only=True, frozen=True, tag="response.output_text.done"):
    """The whole text of a part."""

    text: str
    logprobs: list[OutputLogprob]


class ArgumentsDelta(OfItem, kw_only=True, frozen=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(OfItem, kw_only=True, frozen=True, tag="response.function_call_arguments.done"):
    """All arguments of a call."""

    name: str
    arguments: str


ResponseEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
)
