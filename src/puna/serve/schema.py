"""What travels over HTTP, as values: requests that msgspec checks while it decodes, answers that it encodes.

A field that is not listed is an error, so nothing that a client asks for is silently ignored. Fields of the first group
of a request are honoured; those under "accepted" change nothing or only in values that `convert` refuses.
Not here: meaning, limits (`convert`), events (`stream`).

Source: OpenAI's API reference (chat completions, completions, models, errors); vLLM's protocol files for `top_k`,
`min_p`, `repetition_penalty`, structured outputs, all fields that steer tokens by id, `continuous_usage_stats`,
`max_model_len`, tokenize, detokenize and tokenizer_info.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Received(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What clients send."""


class Sent(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What we send. Fields at their default are left out; those that clients look for have none."""


# Requests ---------------------------------------------------------------------------------------------------------


class StreamOptions(Received, kw_only=True, frozen=True):
    """What a stream holds besides text."""

    include_usage: bool = False  # one chunk without choices at the end
    continuous_usage_stats: bool = False  # every chunk
    include_obfuscation: bool = False  # padding against eavesdroppers, refused when wanted


class StructuredOutputs(Received, kw_only=True, frozen=True):
    """What an answer must look like, as vLLM's clients say it. At most one is given."""

    json: dict[str, Any] | str | None = None  # a JSON schema
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # in Lark notation
    json_object: bool | None = None


class MakingRequest(Received, kw_only=True, frozen=True):
    """What chat and plain completion share. None leaves a setting to the model's defaults."""

    model: str
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None  # these four: older names of the same
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    priority: int | None = None  # less comes earlier
    request_id: str | None = None
    # accepted
    prompt_logprobs: int | None = None
    cache_salt: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class ChatRequest(MakingRequest, kw_only=True, frozen=True):
    """POST /v1/chat/completions. Messages and tools are read by `puna.prompt.message`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # accepted
    modalities: list[str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(MakingRequest, kw_only=True, frozen=True):
    """POST /v1/completions. A prompt is a text, a list of texts, ids, or a list of lists of ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None  # begin_of_text before a text
    # accepted
    best_of: int | None = None
    suffix: str | None = None


class TokenizeRequest(Received, kw_only=True, frozen=True):
    """POST /tokenize: a text, or a conversation as the model would read it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True  # begin_of_text before a text
    return_token_strs: bool = False


class DetokenizeRequest(Received, kw_only=True, frozen=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


# Answers ----------------------------------------------------------------------------------------------------------


class ErrorBody(msgspec.Struct, kw_only=True, frozen=True):
    """What went wrong. `param` is the field of the request that is to blame, None where no field is."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, kw_only=True, frozen=True):
    """The one shape of every error."""

    error: ErrorBody


class PromptTokensDetails(msgspec.Struct, kw_only=True, frozen=True):
    """How the prompt was read."""

    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens of a request, patch tokens and stop tokens included, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct, kw_only=True, frozen=True):
    """One of the most probable tokens at a place. `bytes` is None for a special token, which stands for no text."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, kw_only=True, frozen=True):
    """One token of an answer and what else was probable."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True, frozen=True):
    """Log-probabilities of an answer, or of one chunk of it."""

    content: list[TokenLogprob]


class FunctionCall(msgspec.Struct, kw_only=True, frozen=True):
    """A call; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Sent, kw_only=True, frozen=True):
    """A call with its id. `index` is set in streams only."""

    id: str
    type: str
    function: FunctionCall
    index: int | UnsetType = UNSET


class ChatMessage(Sent, kw_only=True, frozen=True):
    """A whole answer."""

    role: str
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class RoutedExperts(Sent, kw_only=True, frozen=True):
    """Which experts made each token, for each layer that has experts, best first.

    `prompt_counts` says how many tokens of the prompt each expert took; remembered tokens are not read, so not counted.
    """

    layers: list[int]
    n_experts: int
    tokens: list[list[list[int]]]
    prompt_counts: list[list[int]] | UnsetType = UNSET


class ChatChoice(Sent, kw_only=True, frozen=True):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET
    content_filter_results: dict[str, Any] | UnsetType = UNSET  # what protections found, with the finish
    stop_reason: str | UnsetType = UNSET  # the stop string that ended it; as vLLM has it


class ChatCompletion(Sent, kw_only=True, frozen=True):
    """The answer to a chat request."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET


class Delta(Sent, kw_only=True, frozen=True):
    """What is new in a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(Sent, kw_only=True, frozen=True):
    """What is new in one choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET
    content_filter_results: dict[str, Any] | UnsetType = UNSET  # what protections found, with the finish
    stop_reason: str | UnsetType = UNSET  # the stop string that ended it; as vLLM has it


class CompletionLogprobs(msgspec.Struct, kw_only=True, frozen=True):
    """Parallel lists over tokens. The first token of an echoed prompt has None: nothing comes before it.

    `text_offset` counts characters from the beginning of the choice's text.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Sent, kw_only=True, frozen=True):
    """One continuation, or what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET
    content_filter_results: dict[str, Any] | UnsetType = UNSET  # what protections found, with the finish


class Completion(msgspec.Struct, kw_only=True, frozen=True):
    """The answer to a completion request."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Chunk(Sent, kw_only=True, frozen=True):
    """One event of a stream, of chat or plain completion. The last one with usage has no choices."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # of chat, with the first chunk


class ModelCard(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A model that answers here. `max_model_len` is the longest prompt and answer together, in tokens; `parent` is the
    base that an adapter lies over."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    parent: str | None = None


class ModelList(msgspec.Struct, kw_only=True, frozen=True):
    """GET /v1/models."""

    object: str
    data: list[ModelCard]


class Tokens(Sent, kw_only=True, frozen=True):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Text(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of /detokenize."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """GET /tokenizer_info. Conversations are rendered here, so no template is given out."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    vocab_size: int
    max_model_len: int
    chat_template: str | None
