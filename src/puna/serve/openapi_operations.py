"""What can be asked here: every route, what it takes and what it answers, for /openapi.json.

In: nothing. Out: `OPERATIONS`, and `PAGE` for a server that has one. A test holds both against the routes there are.
Not here: the routes, the values, how the document looks (`openapi`).
"""

from typing import Any, NamedTuple

import msgspec

from puna.serve import messages_schema, moderations, openapi_shapes, responses_events, responses_schema, schema

EVENTS = "text/event-stream"


class Status(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of /health and /ready."""

    status: str
    guards: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Version(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of /version."""

    version: str


class Operation(NamedTuple):
    """Something that can be asked with `method` at `path`. `answer` is a type of values, or a media type.

    `events` are what a stream's data hold; it ends with `done` where that is given. `statuses` besides 200 answer with
    `error`, those in `others` with `answer`.
    """

    method: str
    path: str
    summary: str
    answer: Any
    request: Any = None
    events: tuple[Any, ...] = ()
    done: str | None = None
    error: Any = schema.Error
    others: tuple[int, ...] = ()
    is_open: bool = False  # to those without a key


OPERATIONS = (
    Operation("get", "/health", "Whether the server lives.", Status, others=(503,), is_open=True),
    Operation("get", "/ready", "Whether it takes new work.", Status, others=(503,), is_open=True),
    Operation("get", "/version", "Which puna this is.", Version),
    Operation("get", "/metrics", "What was counted, for Prometheus.", "text/plain"),
    Operation("get", "/openapi.json", "This document.", dict[str, Any]),
    Operation("get", "/v1/models", "The model that is here.", schema.ModelList),
    Operation("get", "/v1/models/{model}", "The same, by name.", schema.ModelCard),
    Operation("post", "/tokenize", "Text or a conversation to ids.", schema.Tokens, schema.TokenizeRequest),
    Operation("post", "/detokenize", "Ids to text.", schema.Text, schema.DetokenizeRequest),
    Operation("get", "/tokenizer_info", "What the tokenizer is.", schema.TokenizerInfo),
    Operation(
        "post",
        "/v1/chat/completions",
        "OpenAI's chat.",
        schema.ChatCompletion,
        schema.ChatRequest,
        (openapi_shapes.ChatChunk, schema.Error),
        "[DONE]",
    ),
    Operation(
        "post",
        "/v1/completions",
        "OpenAI's plain completion.",
        schema.Completion,
        schema.CompletionRequest,
        (openapi_shapes.CompletionChunk, schema.Error),
        "[DONE]",
    ),
    Operation(
        "post",
        "/v1/responses",
        "OpenAI's responses, without memory.",
        responses_events.Response,
        responses_schema.ResponsesRequest,
        (responses_events.ResponseEvent,),
    ),
    Operation(
        "post",
        "/v1/messages",
        "Anthropic's messages.",
        messages_schema.Message,
        messages_schema.MessagesRequest,
        (messages_schema.MessageEvent,),
        error=messages_schema.MessagesError,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "How long a prompt is.",
        messages_schema.TokenCount,
        messages_schema.CountRequest,
        error=messages_schema.MessagesError,
    ),
    Operation(
        "post",
        "/v1/moderations",
        "What texts and pictures are judged to be.",
        moderations.Moderation,
        moderations.ModerationRequest,
    ),
    Operation("get", "/v1/shields", "Which guards there are.", dict[str, Any]),
    Operation("get", "/v1/shields/{shield}", "One of them.", dict[str, Any]),
    Operation(
        "post",
        "/v1/safety/run-shield",
        "What one guard says of a conversation.",
        moderations.ShieldAnswer,
        moderations.ShieldRequest,
    ),
    Operation("post", "/v1/feedback/report", "A bad answer, told.", moderations.Receipt, moderations.Report),
)

PAGE = (
    Operation("get", "/", "The page.", "text/html", is_open=True),
    Operation("get", "/page/{name}", "A file of the page.", "*/*", is_open=True),
    Operation("get", "/look/model", "What the page shows of the model.", dict[str, Any]),
    Operation("get", "/look/live", "What the server does, once a second.", EVENTS, events=(dict[str, Any],)),
    Operation("get", "/look/experts", "How often each expert was chosen.", dict[str, Any]),
)
