"""The fields of a request that say how an answer is made, as options of the assistant. Each is honoured or refused.

In: a chat or completion request. Out: `Options`, and which tools may be called.
Not here: messages and prompts (`convert`), pictures (`pictures`).

Source: OpenAI's API reference for `response_format`, `tool_choice`, `allowed_tools` and `logit_bias`; vLLM's protocol
files for `structured_outputs`, the `guided_` fields and those that steer tokens by id.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from puna.chat import Options
from puna.prompt.message import Tool
from puna.serve.limits import Limits
from puna.serve.refusal import Refusal, require
from puna.serve.schema import ChatRequest, MakingRequest

_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "priority",
)
"""Fields that the assistant has under the same name."""

_KINDS = ("json", "regex", "choice", "grammar")
"""Of rules, as vLLM's fields call them."""

_ELSEWHERE = {
    "prompt_logprobs": "is not supported: ask /v1/completions for echo and logprobs",
    "cache_salt": "is not supported: prefixes are remembered for everybody; leave it out",
}


class Rule(NamedTuple):
    """What an answer must look like: an option of the assistant, its value, and the field that it came by."""

    option: str
    value: Any
    param: str


class Calling(NamedTuple):
    """The tools that the model is shown, and the assistant's options for calls."""

    tools: tuple[Tool, ...]
    options: dict[str, Any]


def options_of(request: MakingRequest, limit: int | None, limits: Limits) -> Options:
    """Returns what chat and completions share. `limit` is that of new tokens. Raises Refusal."""
    for name, problem in _ELSEWHERE.items():
        require(getattr(request, name) is None, name, problem)
    padded = request.stream_options is not None and request.stream_options.include_obfuscation
    require(not padded, "stream_options.include_obfuscation", "is not supported: leave it out")
    require(
        request.stream_options is None or bool(request.stream), "stream_options", "is for streams: set stream to true"
    )
    named: dict[str, Any] = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    if request.top_k is not None:
        named["top_k"] = 0 if request.top_k == -1 else request.top_k  # -1 is vLLM's "all"
    if limit is not None:
        require(limit >= 1, "max_tokens", f"is {limit}: give 1 or more")
        named["max_new_tokens"] = limit
    named |= {"stop": _stops(request, limits), "n": 1 if request.n is None else request.n}
    if request.return_routed_experts:
        named["wants_routes"] = True
    if request.include_stop_str_in_output:
        named["include_stop"] = True
    options: Options = Options(**named, **_by_id(request, limits))  # type: ignore[typeddict-item]
    return options


def rule_of(request: MakingRequest, limits: Limits) -> Rule | None:
    """Returns what the answer must look like, if anything is said. Raises Refusal where several fields say it."""
    wanted, outputs = request.response_format, request.structured_outputs
    if wanted is None and outputs is None and all(getattr(request, f"guided_{kind}") is None for kind in _KINDS):
        return None
    found = [] if wanted is None else [rule for rule in [_format(wanted)] if rule is not None]
    for name in _KINDS:
        option = "json_schema" if name == "json" else name
        given = {f"guided_{name}": getattr(request, f"guided_{name}")}
        given[f"structured_outputs.{name}"] = None if outputs is None else getattr(outputs, name)
        found += [Rule(option, value, param) for param, value in given.items() if value is not None]
    if outputs is not None and outputs.json_object:
        found.append(Rule("json_schema", {"type": "object"}, "structured_outputs.json_object"))
    if not found:
        return None
    params = " and ".join(rule.param for rule in found)
    require(len(found) == 1, found[-1].param, f"is one of {params}: an answer follows one of them")
    rule = found[0]
    n_chars = len(rule.value) if isinstance(rule.value, str) else len(_dumped(rule))
    require(
        n_chars <= limits.max_rule_chars,
        rule.param,
        f"has {n_chars} characters: at most {limits.max_rule_chars} are followed",
    )
    return rule


def calling_of(request: ChatRequest, tools: Sequence[Tool]) -> Calling:
    """Returns which tools the model is shown and whether it must call. Raises Refusal."""
    options: dict[str, Any] = {"max_calls": 1} if request.parallel_tool_calls is False else {}
    names = [tool.name for tool in tools]
    match request.tool_choice:
        case "none":
            return Calling((), {})
        case None | "auto":
            return Calling(tuple(tools), options if tools else {})
        case "required":
            require(bool(tools), "tool_choice", "is 'required', but there are no tools: give some")
            return Calling(tuple(tools), options | {"tool_choice": "required"})
        case {"type": "function", "function": {"name": str(name)}}:
            return Calling(tuple(tools), {"tool_choice": _known(name, names), "max_calls": 1})
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(allowed)}}:
            chosen = {_known(_name(each), names) for each in allowed}
            require(bool(chosen), "tool_choice.allowed_tools.tools", "is empty: name a tool, or choose none")
            shown = tuple(tool for tool in tools if tool.name in chosen)
            return Calling(shown, options | ({"tool_choice": mode} if mode == "required" else {}))
    problem = (
        'is none of "none", "auto", "required", {"type": "function", "function": {"name": ...}} and '
        '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}'
    )
    raise Refusal(400, f"tool_choice {problem}", param="tool_choice")


def written_of(request: ChatRequest) -> dict[str, Any]:
    """Returns how the prompt is written: where tools stand, how they are called, and what it ends with."""
    options: dict[str, Any] = {}
    for name, value in (request.chat_template_kwargs or {}).items():
        where = f"chat_template_kwargs.{name}"
        match name:
            case "tools_in_user_message":
                require(isinstance(value, bool), where, "is no truth value: give true or false")
                options["tools_in"] = "user" if value else "system"
            case "tool_style":
                require(value in ("pythonic", "json"), where, 'is unknown: give "pythonic" or "json"')
                options["tool_style"] = value
            case _:
                raise Refusal(400, f"{where} is not known here: leave it out", param=where)
    if request.continue_final_message:
        both = "is true beside add_generation_prompt: an answer is either continued or begun"
        require(not request.add_generation_prompt, "continue_final_message", both)
        options["reply"] = "continue"
    elif request.add_generation_prompt is False:
        options["reply"] = "none"
    return options


def top_logprobs(param: str, n: int, limits: Limits) -> int:
    """Returns how many of the most probable tokens are told. Raises Refusal where they are too many."""
    require(0 <= n <= limits.max_top_logprobs, param, f"is {n}: give 0 to {limits.max_top_logprobs}")
    return n


def _stops(request: MakingRequest, limits: Limits) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    require(len(stops) <= limits.max_stops, "stop", f"holds {len(stops)} strings: give at most {limits.max_stops}")
    in_range = all(1 <= len(stop) <= limits.max_stop_chars for stop in stops)
    require(in_range, "stop", f"has a string of no or too many characters: give 1 to {limits.max_stop_chars}")
    return stops


def _by_id(request: MakingRequest, limits: Limits) -> dict[str, Any]:
    """Returns the options that steer single ids."""
    named: dict[str, Any] = {}
    if request.logit_bias:
        n = len(request.logit_bias)
        require(n <= limits.max_biases, "logit_bias", f"has {n} entries: give at most {limits.max_biases}")
        require(
            all(id_.isdecimal() and len(id_) < 10 for id_ in request.logit_bias),
            "logit_bias",
            'has a key that is no token id: give {"id": bias}',
        )
        require(
            all(-100 <= value <= 100 for value in request.logit_bias.values()),
            "logit_bias",
            "has a value beyond -100..100",
        )
        named["logit_bias"] = {int(id_): value for id_, value in request.logit_bias.items()}
    for name in ("stop_token_ids", "allowed_token_ids"):
        n = len(getattr(request, name) or ())
        require(n <= limits.max_ids, name, f"holds {n} ids: give at most {limits.max_ids}")
    if request.stop_token_ids:
        named["stop_ids"] = request.stop_token_ids
    if request.ignore_eos:
        named["ignore_stop_ids"] = True
    if request.min_tokens:
        named["min_new_tokens"] = request.min_tokens
    if request.allowed_token_ids is not None:
        require(bool(request.allowed_token_ids), "allowed_token_ids", "is empty: give the ids that may be written")
        named["allowed_ids"] = request.allowed_token_ids
    if request.skip_special_tokens is not None:
        named["show_special"] = not request.skip_special_tokens
    return named


def _format(wanted: Mapping[str, Any]) -> Rule | None:
    match wanted:
        case {"type": "text", **others} if not others:
            return None
        case {"type": "json_object", **others} if not others:
            return Rule("json_schema", {"type": "object"}, "response_format")
        case {"type": "json_schema", "json_schema": dict(named), **others} if not others:
            unknown = sorted(named.keys() - {"name", "description", "schema", "strict"})
            require(not unknown, "response_format.json_schema", f"has the unknown field {unknown[:1]}: leave it out")
            param = "response_format.json_schema.schema"
            require(isinstance(named.get("schema"), dict), param, "is no object: give a JSON schema")
            return Rule("json_schema", named["schema"], param)
    kind = str(wanted.get("type"))[:100]
    problem = (
        f'of type {kind!r} is not understood: give "text", "json_object", or "json_schema" with json_schema.schema'
    )
    raise Refusal(400, f"response_format {problem}", param="response_format")


def _dumped(rule: Rule) -> str:
    try:
        return json.dumps(rule.value)
    except RecursionError as error:
        raise Refusal(400, f"{rule.param} is nested too deep: make it flatter", param=rule.param) from error


def _name(document: object) -> str:
    match document:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    param = "tool_choice.allowed_tools.tools"
    raise Refusal(400, f'{param} holds no {{"type": "function", "function": {{"name": ...}}}}', param=param)


def _known(name: str, names: Sequence[str]) -> str:
    problem = f"names {name[:100]!r}, but the tools given are {', '.join(names)[:300] or 'none'}: name one of them"
    require(name in names, "tool_choice", problem)
    return name
