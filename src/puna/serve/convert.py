"""Requests of the API to what the model needs: prompts and options. Every field is honoured here or refused.

In: values of `schema`. Out: `Job`s, or a `Refusal` with the field that is to blame.
Not here: what single fields mean (`options`), pictures (`pictures`), running anything, the shape of answers (`stream`).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from puna.chat import Options, Prompter
from puna.prompt.message import Message, TextPart, Tool
from puna.prompt.render import Prompt
from puna.serve.limits import Limits
from puna.serve.options import calling_of, options_of, rule_of, top_logprobs, written_of
from puna.serve.pictures import Fetch, refuse_fetching, with_pictures
from puna.serve.refusal import Refusal, called, refusal_of, require
from puna.serve.schema import ChatRequest, CompletionRequest, TokenizeRequest

__all__ = [
    "Job",
    "Limits",
    "Refusal",
    "chat_job",
    "completion_jobs",
    "n_choices",
    "read_messages",
    "read_tools",
    "refusal_of",
    "tokenized",
    "unchecked_chat_job",
]


Prepare = Callable[[Sequence[Message]], Sequence[Message]]
"""What protections make of a conversation before the model reads it."""


class Job(NamedTuple):
    """One prompt and how it is answered. `n` is 0 where only the prompt is read.

    `text` is the prompt as its sender wrote it, for echoes; `tools` are those whose calls are looked for; `messages`
    are what is answered, a plain text being a user's.
    """

    prompt: Prompt
    options: Options
    n: int
    text: str
    tools: tuple[Tool, ...]
    messages: tuple[Message, ...]


def n_choices(request: ChatRequest | CompletionRequest, limits: Limits) -> int:
    """Returns how many answers a request asks for, before anything is read. Raises Refusal when they are too many."""
    n = 1 if request.n is None else request.n
    require(1 <= n <= limits.max_n, "n", f"is {n}: give 1 to {limits.max_n}")
    n_prompts = len(request.prompt) if isinstance(request, CompletionRequest) and _is_list(request.prompt) else 1
    require(
        n * n_prompts <= limits.max_choices,
        "n",
        f"asks for {n * n_prompts} answers in all: at most {limits.max_choices} fit into a request",
    )
    return n * n_prompts


def chat_job(
    prompter: Prompter,
    request: ChatRequest,
    limits: Limits,
    fetch: Fetch = refuse_fetching,
    prepare: Prepare = list,
) -> Job:
    """Returns the job of a chat request. Slow where there are pictures or grammars. Raises Refusal or PromptError.

    `prepare` is what protections make of the conversation before the model reads it.
    """
    job = unchecked_chat_job(prompter, request, limits, fetch, prepare)
    _check_context(prompter, job.prompt, _limit(request), least=1)
    return job


def unchecked_chat_job(
    prompter: Prompter,
    request: ChatRequest,
    limits: Limits,
    fetch: Fetch = refuse_fetching,
    prepare: Prepare = list,
) -> Job:
    """Returns the same, also where the context is too small for it: to count its prompt."""
    _refuse_chat_fields(request)
    calling = calling_of(request, read_tools(request.tools, limits))
    limit = _limit(request)
    named: dict[str, Any] = {**options_of(request, limit, limits), **calling.options, **written_of(request)}
    if request.logprobs:
        named["logprobs"] = top_logprobs("top_logprobs", request.top_logprobs or 0, limits)
    elif request.top_logprobs:
        raise Refusal(400, "top_logprobs: needs logprobs true", param="top_logprobs")
    rule = rule_of(request, limits)
    names = {}
    if rule is not None:
        is_free = "tool_choice" not in named and (not calling.tools or rule.option == "json_schema")
        require(is_free, rule.param, "beside tools that may be called: choose one of the two")
        named[rule.option] = rule.value
        names[rule.option] = rule.param
    messages = prepare(read_messages(request.messages, limits, fetch))
    with called(names):
        prompt, options = prompter.prepare(messages, calling.tools, **named)
    return Job(prompt, options, options.get("n", 1), "", calling.tools, tuple(messages))


def completion_jobs(prompter: Prompter, request: CompletionRequest, limits: Limits) -> list[Job]:
    """Returns one job per prompt, in order. Raises Refusal or PromptError."""
    require(request.suffix is None, "suffix", "is not supported: this model only writes onwards")
    n = 1 if request.n is None else request.n
    require(request.best_of in (None, n), "best_of", f"is {request.best_of}: only n itself is supported")
    limit = 16 if request.max_tokens is None else request.max_tokens  # Source: OpenAI's API reference
    reads_only = limit == 0 and bool(request.echo)
    named: dict[str, Any] = {**options_of(request, None if reads_only else limit, limits)}
    if request.logprobs is not None:
        named["logprobs"] = top_logprobs("logprobs", request.logprobs, limits)
    rule = rule_of(request, limits)
    if rule is not None:
        named[rule.option] = rule.value
    with called({} if rule is None else {rule.option: rule.param}):
        options = prompter.compiled(Options(**named))  # type: ignore[typeddict-item]
    jobs = []
    for where, given in _prompts(request.prompt):
        prompt = _prompt(prompter, request, given)
        _check_ids(prompter, prompt, where)
        _check_context(prompter, prompt, limit, least=0 if reads_only else 1)
        if request.echo and request.logprobs is not None:
            _check_echo(prompter, prompt, limits)
        text = given if isinstance(given, str) else prompter.tokenizer.decode_bytes(given).decode("utf-8", "replace")
        messages = (Message("user", (TextPart(text),)),)
        jobs.append(Job(prompt, options, 0 if reads_only else n, text, (), messages))
    return jobs


def tokenized(prompter: Prompter, request: TokenizeRequest, limits: Limits) -> list[int]:
    """Returns the ids of a text or of a conversation. Raises Refusal or PromptError."""
    require((request.prompt is None) != (request.messages is None), "prompt", "or messages: give one of the two")
    if request.messages is not None:
        tools = read_tools(request.tools, limits)
        return prompter.prompt(read_messages(request.messages, limits), tools).ids
    require(not request.tools, "tools", "belong to messages, not to a prompt")
    assert request.prompt is not None, "checked above"
    ids = prompter.tokenizer.encode(request.prompt)
    return [prompter.tokenizer.bos_id, *ids] if request.add_special_tokens else ids


def read_messages(documents: Sequence[dict[str, Any]], limits: Limits, fetch: Fetch = refuse_fetching) -> list[Message]:
    """Returns messages with their pictures decoded. Raises Refusal or PromptError."""
    require(len(documents) > 0, "messages", "is empty: give at least one message")
    require(len(documents) <= limits.max_messages, "messages", f"holds more than {limits.max_messages} messages")
    return [
        Message.from_dict(document, where=f"messages[{i}]", paths=False)
        for i, document in enumerate(with_pictures(documents, limits, fetch))
    ]


def read_tools(documents: Sequence[dict[str, Any]] | None, limits: Limits) -> tuple[Tool, ...]:
    """Returns tool definitions. Raises Refusal or PromptError."""
    require(len(documents or ()) <= limits.max_tools, "tools", f"holds more than {limits.max_tools} tools")
    tools = tuple(Tool.from_dict(tool, where=f"tools[{i}]") for i, tool in enumerate(documents or ()))
    n_chars = sum(len(json.dumps(tool.parameters)) for tool in tools)
    require(
        n_chars <= limits.max_rule_chars,
        "tools",
        f"has schemas of {n_chars} characters: at most {limits.max_rule_chars}",
    )
    return tools


# Fields -----------------------------------------------------------------------------------------------------------


def _refuse_chat_fields(request: ChatRequest) -> None:
    require(request.modalities in (None, [], ["text"]), "modalities", "other than text are not available")
    require(not request.store, "store", "is true, but nothing is stored here: leave it out")


def _prompt(prompter: Prompter, request: CompletionRequest, given: str | list[int]) -> Prompt:
    if not isinstance(given, str):
        return Prompt(list(given), None)
    prompt = prompter.text_prompt(given)
    if request.add_special_tokens is False:
        require(len(prompt.ids) > 1, "prompt", "is empty without its begin_of_text: give a text")
        return Prompt(prompt.ids[1:], None)
    return prompt


def _prompts(given: str | list[str | int | list[int]]) -> list[tuple[str, str | list[int]]]:
    """Returns each prompt with what errors call it."""
    if isinstance(given, str):
        return [("prompt", given)]
    require(len(given) > 0, "prompt", "is empty: give a text or token ids")
    kinds = {type(item) for item in given}
    require(len(kinds) == 1, "prompt", "mixes texts, ids and lists: give one kind")
    if kinds == {int}:
        return [("prompt", given)]  # type: ignore[list-item]
    return [(f"prompt[{i}]", item) for i, item in enumerate(given)]  # type: ignore[misc]


def _is_list(prompt: str | list[str | int | list[int]]) -> bool:
    return isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)


def _check_ids(prompter: Prompter, prompt: Prompt, where: str) -> None:
    require(len(prompt.ids) > 0, where, "is empty: give a text or token ids")
    size, patch_id = prompter.tokenizer.vocab_size, prompter.config.patch_id
    strange = next((id_ for id_ in prompt.ids if not 0 <= id_ < size or id_ == patch_id), None)
    require(strange is None, where, f"holds {strange}: give ids of text, 0 to {size - 1}")


def _limit(request: ChatRequest) -> int | None:
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens


def _check_context(prompter: Prompter, prompt: Prompt, limit: int | None, *, least: int) -> None:
    context_len, asked = prompter.config.text.context_len, least if limit is None else limit
    if len(prompt.ids) + asked > context_len:
        raise Refusal(
            400,
            f"the context holds {context_len} tokens, but the prompt has {len(prompt.ids)} and {asked} more were asked "
            "for: shorten one of them",
            param="messages" if limit is None else None,
            code="context_length_exceeded",
        )


def _check_echo(prompter: Prompter, prompt: Prompt, limits: Limits) -> None:
    n_bytes = 4 * len(prompt.ids) * prompter.config.text.vocab_size
    most = limits.max_echo_bytes // (4 * prompter.config.text.vocab_size)
    require(
        n_bytes <= limits.max_echo_bytes,
        "prompt",
        f"has {len(prompt.ids)} tokens: log-probabilities are echoed for at most {most}; send it in parts",
    )
