"""Requests of the API to what the model needs: prompts and options. Every field is honoured here or refused.

In: values of `schema`. Out: `Job`s, or `Refusal`, the one error that clients see, with the field that is to blame.
Pictures are looked at before they are decoded: where they come from, how many, bytes, format and pixels.
Not here: running anything, the shape of answers (`stream`), HTTP.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image

from puna.chat import Assistant, Options
from puna.errors import PromptError
from puna.prompt.message import Message, TextPart, Tool
from puna.prompt.render import Prompt
from puna.serve.schema import ChatRequest, CompletionRequest, ErrorBody, MakingRequest, TokenizeRequest

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What a server decodes: the formats of the web. The others that Pillow knows are read from one's own disk only."""

_NAMED = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?: is |: | has | holds )")
_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may ask for. Every excess is refused with the limit in the message."""

    max_n: int = 64  # samples of one prompt, which the engine decodes together
    max_choices: int = 128  # prompts times n
    max_messages: int = 2048
    max_tools: int = 128
    max_stops: int = 16
    max_stop_chars: int = 256
    max_top_logprobs: int = 20  # as in OpenAI's API
    max_images: int = 5  # what Llama 4 was tested with, by its model card
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 24_000_000
    max_echo_bytes: int = 2 * 2**30  # of float32 logits, which are all held at once


class Refusal(Exception):  # noqa: N818  a refusal is what it is: a request was understood and will not be served
    """An answer other than 200: status, and OpenAI's error body. `headers` go along."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, type=kind, param=param, code=code)
        self.headers = dict(headers or {})


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


def refusal_of(error: PromptError) -> Refusal:
    """Returns a 400 whose `param` is the field that the message begins with, if it does."""
    named = _NAMED.match(str(error))
    return Refusal(400, str(error), param=named[1] if named else None)


def n_choices(request: ChatRequest | CompletionRequest, limits: Limits) -> int:
    """Returns how many answers a request asks for, before anything is read. Raises Refusal when they are too many."""
    n = 1 if request.n is None else request.n
    _require(1 <= n <= limits.max_n, "n", f"is {n}: give 1 to {limits.max_n}")
    n_prompts = len(request.prompt) if isinstance(request, CompletionRequest) and _is_list(request.prompt) else 1
    _require(
        n * n_prompts <= limits.max_choices,
        "n",
        f"asks for {n * n_prompts} answers in all: at most {limits.max_choices} fit into a request",
    )
    return n * n_prompts


def chat_job(assistant: Assistant, request: ChatRequest, limits: Limits) -> Job:
    """Returns the job of a chat request. Slow where there are pictures. Raises Refusal or PromptError."""
    _refuse_chat_fields(request)
    tools = read_tools(request.tools, limits) if _may_call(request) else ()
    messages = read_messages(request.messages, limits)
    prompt = assistant.prompt(messages, tools)
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    options = _options(request, limit, limits)
    if request.logprobs:
        options["logprobs"] = _top_logprobs("top_logprobs", request.top_logprobs or 0, limits)
    elif request.top_logprobs:
        raise Refusal(400, "top_logprobs: needs logprobs true", param="top_logprobs")
    _check_context(assistant, prompt, limit, least=1)
    return Job(prompt, options, options.get("n", 1), "", tools, tuple(messages))


def completion_jobs(assistant: Assistant, request: CompletionRequest, limits: Limits) -> list[Job]:
    """Returns one job per prompt, in order. Raises Refusal or PromptError."""
    _require(request.suffix is None, "suffix", "is not supported: this model only writes onwards")
    n = 1 if request.n is None else request.n
    _require(request.best_of in (None, n), "best_of", f"is {request.best_of}: only n itself is supported")
    limit = 16 if request.max_tokens is None else request.max_tokens  # Source: OpenAI's API reference
    reads_only = limit == 0 and bool(request.echo)
    options = _options(request, None if reads_only else limit, limits)
    if request.logprobs is not None:
        options["logprobs"] = _top_logprobs("logprobs", request.logprobs, limits)
    jobs = []
    for where, given in _prompts(request.prompt):
        ids_given = not isinstance(given, str)
        prompt = Prompt(list(given), None) if ids_given else assistant.text_prompt(given)  # type: ignore[arg-type]
        _check_ids(assistant, prompt, where)
        _check_context(assistant, prompt, limit, least=0 if reads_only else 1)
        if request.echo and request.logprobs is not None:
            _check_echo(assistant, prompt, limits)
        text = assistant.tokenizer.decode_bytes(prompt.ids).decode("utf-8", "replace") if ids_given else str(given)
        messages = (Message("user", (TextPart(text),)),)
        jobs.append(Job(prompt, options, 0 if reads_only else n, text, (), messages))
    return jobs


def tokenized(assistant: Assistant, request: TokenizeRequest, limits: Limits) -> list[int]:
    """Returns the ids of a text or of a conversation. Raises Refusal or PromptError."""
    _require((request.prompt is None) != (request.messages is None), "prompt", "or messages: give one of the two")
    if request.messages is not None:
        tools = read_tools(request.tools, limits)
        return assistant.prompt(read_messages(request.messages, limits), tools).ids
    _require(not request.tools, "tools", "belong to messages, not to a prompt")
    assert request.prompt is not None, "checked above"
    ids = assistant.tokenizer.encode(request.prompt)
    return [assistant.tokenizer.bos_id, *ids] if request.add_special_tokens else ids


def read_messages(documents: Sequence[dict[str, Any]], limits: Limits) -> list[Message]:
    """Returns messages with their pictures decoded. Raises Refusal or PromptError."""
    _require(len(documents) > 0, "messages", "is empty: give at least one message")
    _require(len(documents) <= limits.max_messages, "messages", f"holds more than {limits.max_messages} messages")
    contents = [document.get("content") for document in documents]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    n_images = sum(isinstance(part, dict) and part.get("type") in ("image", "image_url") for part in parts)
    _require(
        n_images <= limits.max_images, "messages", f"holds {n_images} images: at most {limits.max_images} are read here"
    )
    return [
        Message.from_dict(_with_images(document, f"messages[{i}]", limits), where=f"messages[{i}]", paths=False)
        for i, document in enumerate(documents)
    ]


def read_tools(documents: Sequence[dict[str, Any]] | None, limits: Limits) -> tuple[Tool, ...]:
    """Returns tool definitions. Raises Refusal or PromptError."""
    _require(len(documents or ()) <= limits.max_tools, "tools", f"holds more than {limits.max_tools} tools")
    return tuple(Tool.from_dict(_plain_tool(tool), where=f"tools[{i}]") for i, tool in enumerate(documents or ()))


# Fields -----------------------------------------------------------------------------------------------------------


def _options(request: MakingRequest, limit: int | None, limits: Limits) -> Options:
    _require(not request.logit_bias, "logit_bias", "is not supported: leave it out")
    padded = request.stream_options is not None and request.stream_options.include_obfuscation
    _require(not padded, "stream_options.include_obfuscation", "is not supported: leave it out")
    _require(
        request.stream_options is None or bool(request.stream), "stream_options", "is for streams: set stream to true"
    )
    named: dict[str, Any] = {name: value for name in _OPTIONS if (value := getattr(request, name)) is not None}
    if limit is not None:
        _require(limit >= 1, "max_tokens", f"is {limit}: give 1 or more")
        named["max_new_tokens"] = limit
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    _require(len(stops) <= limits.max_stops, "stop", f"holds {len(stops)} strings: give at most {limits.max_stops}")
    lengths = [len(stop) for stop in stops]
    in_range = all(1 <= length <= limits.max_stop_chars for length in lengths)
    _require(in_range, "stop", f"has a string of no or too many characters: give 1 to {limits.max_stop_chars}")
    named |= {"stop": stops, "n": 1 if request.n is None else request.n}
    options: Options = Options(**named)  # type: ignore[typeddict-item]
    return options


def _refuse_chat_fields(request: ChatRequest) -> None:
    kind = (request.response_format or {}).get("type", "text")
    _require(kind == "text", "response_format", f"of type {kind!r} is not available yet: use text and say it in words")
    _require(request.modalities in (None, [], ["text"]), "modalities", "other than text are not available")
    _require(not request.store, "store", "is true, but nothing is stored here: leave it out")


def _may_call(request: ChatRequest) -> bool:
    choice = request.tool_choice
    if choice is None or choice in ("auto", "none"):
        return choice != "none"
    raise Refusal(400, 'tool_choice: forcing a call is not available yet; use "auto" or "none"', param="tool_choice")


def _plain_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a definition without `strict`, which is refused where it is wanted: it needs a grammar."""
    function = tool.get("function")
    if not isinstance(function, dict) or "strict" not in function:
        return tool
    _require(not function["strict"], "tools", "with strict true are not available yet: leave strict out")
    return tool | {"function": {name: value for name, value in function.items() if name != "strict"}}


def _top_logprobs(param: str, n: int, limits: Limits) -> int:
    _require(0 <= n <= limits.max_top_logprobs, param, f"is {n}: give 0 to {limits.max_top_logprobs}")
    return n


def _prompts(given: str | list[str | int | list[int]]) -> list[tuple[str, str | list[int]]]:
    """Returns each prompt with what errors call it."""
    if isinstance(given, str):
        return [("prompt", given)]
    _require(len(given) > 0, "prompt", "is empty: give a text or token ids")
    kinds = {type(item) for item in given}
    _require(len(kinds) == 1, "prompt", "mixes texts, ids and lists: give one kind")
    if kinds == {int}:
        return [("prompt", given)]  # type: ignore[list-item]
    return [(f"prompt[{i}]", item) for i, item in enumerate(given)]  # type: ignore[misc]


def _is_list(prompt: str | list[str | int | list[int]]) -> bool:
    return isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)


def _check_ids(assistant: Assistant, prompt: Prompt, where: str) -> None:
    _require(len(prompt.ids) > 0, where, "is empty: give a text or token ids")
    size, patch_id = assistant.tokenizer.vocab_size, assistant.config.patch_id
    strange = next((id_ for id_ in prompt.ids if not 0 <= id_ < size or id_ == patch_id), None)
    _require(strange is None, where, f"holds {strange}: give ids of text, 0 to {size - 1}")


def _check_context(assistant: Assistant, prompt: Prompt, limit: int | None, *, least: int) -> None:
    context_len, asked = assistant.config.text.context_len, least if limit is None else limit
    if len(prompt.ids) + asked > context_len:
        raise Refusal(
            400,
            f"the context holds {context_len} tokens, but the prompt has {len(prompt.ids)} and {asked} more were asked "
            "for: shorten one of them",
            param="messages" if limit is None else None,
            code="context_length_exceeded",
        )


def _check_echo(assistant: Assistant, prompt: Prompt, limits: Limits) -> None:
    n_bytes = 4 * len(prompt.ids) * assistant.config.text.vocab_size
    most = limits.max_echo_bytes // (4 * assistant.config.text.vocab_size)
    _require(
        n_bytes <= limits.max_echo_bytes,
        "prompt",
        f"has {len(prompt.ids)} tokens: log-probabilities are echoed for at most {most}; send it in parts",
    )


def _require(condition: bool, param: str, problem: str) -> None:
    if not condition:
        raise Refusal(400, f"{param} {problem}", param=param)


# Pictures ---------------------------------------------------------------------------------------------------------


def _with_images(document: dict[str, Any], where: str, limits: Limits) -> dict[str, Any]:
    """Returns a message whose data URLs became pictures that are opened, checked and not decoded yet."""
    content = document.get("content")
    if not isinstance(content, list):
        return document
    parts = [_with_image(part, f"{where}.content[{i}]", limits) for i, part in enumerate(content)]
    return document | {"content": parts}


def _with_image(part: Any, where: str, limits: Limits) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    kind = part["type"]
    link = part.get(kind)
    url = link.get("url") if isinstance(link, dict) else link
    others = [key for key in part if key not in ("type", kind)]
    others += [key for key in (link if isinstance(link, dict) else ()) if key not in ("url", "detail")]
    _require(not others, where, f"has the unknown field {others[:1]}: leave it out")
    return {"type": "image", "image": _open(url, f"{where}.{kind}", limits)}


def _open(url: object, where: str, limits: Limits) -> Image.Image:
    if not isinstance(url, str) or not url.startswith("data:"):
        raise Refusal(
            400, f"{where}: is no data URL; nothing else is fetched here: send data:image/png;base64,...", param=where
        )
    head, _, body = url.partition(",")
    _require(head.endswith(";base64"), where, "is not in base64: send data:image/png;base64,...")
    _require(len(body) * 3 // 4 <= limits.max_image_bytes, where, f"has more than {limits.max_image_bytes} bytes")
    try:
        image = Image.open(BytesIO(base64.b64decode(body, validate=True)), formats=IMAGE_FORMATS)
    except binascii.Error as error:
        raise Refusal(400, f"{where} is not valid base64: encode the file again", param=where) from error
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        formats = ", ".join(IMAGE_FORMATS)
        raise Refusal(400, f"{where} is not an image that can be read: send one of {formats}", param=where) from error
    n_pixels = image.width * image.height
    _require(n_pixels <= limits.max_image_pixels, where, f"has {n_pixels} pixels: at most {limits.max_image_pixels}")
    return image
