"""What the fields of requests are held to besides their types, for /openapi.json.

In: what the server is. Out: keywords of JSON schema, by field. Nothing here looks at a request: the limits are
`convert`'s and `options`', the numbers' the engine's, what is refused `responses`'. A run of schemathesis over the
document holds these ranges against what is read.
"""

from typing import Any

from puna.prompt.message import NAME
from puna.serve.responses import HARMLESS
from puna.serve.state import State

MAX_PRIORITY = 100
"""As in the engine."""

_RULES = ("StructuredOutputs.regex", "StructuredOutputs.grammar")
_NAMED = (
    *("ChatFunction.name", "ChatCall.name", "FunctionTool.name", "CallItem.name"),
    *("ToolDefinition.name", "ToolUseBlock.name"),
)


def ranges(state: State) -> dict[str, dict[str, Any]]:
    """Returns keywords by field, or by value and field where one differs. "enum" and "anyOf" stand for the whole."""
    limits, n_ids = state.settings.limits, state.prompter.tokenizer.vocab_size
    token_id = {"type": "integer", "minimum": 0, "maximum": n_ids - 1}
    length = {"minimum": 1, "maximum": state.context_len}
    stop = {"minLength": 1, "maxLength": limits.max_stop_chars}
    stops = {"maxItems": limits.max_stops, "items": {"type": "string"} | stop}
    top, share = {"minimum": 0, "maximum": limits.max_top_logprobs}, {"minimum": 0, "maximum": 1}
    penalty, nothing = {"minimum": -2, "maximum": 2}, {"enum": [None]}
    texts, ids = {"type": "array", "minItems": 1, "items": {"type": "string"}}, {"type": "array", "minItems": 1}
    name, name_or_none = {"enum": [*state.models]}, {"enum": [*state.models, None]}
    choices = {"minItems": 1, "items": {"type": "string", "minLength": 1}}
    biases = {
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": limits.max_biases,
    }
    known: dict[str, dict[str, Any]] = {
        "model": name,
        "TokenizeRequest.model": name_or_none,
        "DetokenizeRequest.model": name_or_none,
        "ModerationRequest.model": {},  # says anything
        "n": {"minimum": 1, "maximum": limits.max_n},
        "max_tokens": length,
        "max_completion_tokens": length,
        "max_output_tokens": length,
        "CompletionRequest.max_tokens": length | {"minimum": 0},  # 0 only echoes
        "min_tokens": {"minimum": 0},
        "temperature": {"minimum": 0, "maximum": 10**9},
        "top_p": {"exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"minimum": -1},
        "min_p": share,
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "repetition_penalty": {"minimum": 1e-4, "maximum": 10_000},
        "seed": {"minimum": 0},
        "stop": stop | stops,
        "stop_sequences": stops,
        "top_logprobs": top,
        "CompletionRequest.logprobs": top,
        "logit_bias": biases,
        "allowed_token_ids": {"minItems": 1, "items": token_id},
        "stop_token_ids": {"items": token_id},
        "priority": {"minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
        "messages": {"minItems": 1, "maxItems": limits.max_messages},
        "input": {"minItems": 1, "maxItems": limits.max_choices},
        "ResponsesRequest.input": {"minItems": 1},
        "tools": {"maxItems": limits.max_tools},
        "tokens": {"items": token_id},
        "request_id": {"pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
        "response_id": {"minLength": 1, "maxLength": 200},
        "reason": {"minLength": 1, "maxLength": 100},
        **{key: {"minLength": 1} for key in ("guided_regex", "guided_grammar", *_RULES)},
        **{key: choices for key in ("guided_choice", "StructuredOutputs.choice")},
        "best_of": {"minimum": 1, "maximum": limits.max_n},
        "prompt": {
            "anyOf": [
                {"type": "string"},
                texts,
                ids | {"items": token_id},
                ids | {"items": ids | {"items": token_id}},
            ]
        },
        "TokenizeRequest.prompt": {},
        "suffix": nothing,
        "prompt_logprobs": nothing,
        "cache_salt": nothing,
        "modalities": {"enum": [None, [], ["text"]]},
        "store": {"enum": [None, False]},
        "StreamOptions.include_obfuscation": {"enum": [False]},
        "ChatAllowed.tools": {"minItems": 1},
        "AllowedTools.tools": {"minItems": 1},
        "UrlSource.url": {"pattern": "^https?:"},
        **{key: {"pattern": f"^{NAME}$"} for key in _NAMED},
    }
    return known | {f"ResponsesRequest.{field}": {"enum": list(values)} for field, values in HARMLESS.items()}
