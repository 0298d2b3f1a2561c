"""A model behind a server that speaks OpenAI's API: chats, plain completions, and log-likelihoods of echoed prompts.

In: questions. Out: replies, asked for over HTTP, many at a time. What the server cannot read (status 400) is that
item's refusal; whatever would be the same for all items (no such address, no key, no log-probabilities) ends the run
with an error that says so. A server that is busy or gone is asked again a few times.
Not here: how a server tokenizes. Where a text ends and a continuation begins is found by characters.

Source: OpenAI's API reference; `max_model_len` and `/tokenize` as vLLM and puna have them.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from http.client import HTTPException
from typing import Any

from puna.errors import ConfigError, DeviceError, PromptError
from puna.eval.ask import Question, Reply
from puna.eval.task import Chat, Choice, Compare, Completion, Likelihood, Passage
from puna.prompt.message import Message
from puna.prompt.render import call_text

TRIES = 6  # of a request that finds the server busy or gone
FIRST_PAUSE_SECONDS = 0.5  # before the second try; doubled before each further one
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class RemoteModel:
    """A model at `url` (up to and including /v1). `model` is its name there; None takes the first that is listed.

    Raises DeviceError when nobody answers there, ConfigError when what answers is no such server.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        batch: int = 16,
        timeout_seconds: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError(f"--url is {url!r}: give an address such as http://127.0.0.1:8000/v1")
        self._key = key
        self._batch = batch
        self._timeout_seconds = timeout_seconds
        self._sleep = sleep
        card = self._card(model)
        self.name: str = card["id"]
        length = card.get("max_model_len")
        self.context_len: int | None = length if isinstance(length, int) else None
        self.identity: Mapping[str, Any] = {"model": self.name, "url": self._url}

    def count(self, text: str) -> int | None:
        """Returns how many tokens a text has, None where the server does not tell."""
        return self._count({"prompt": text, "add_special_tokens": False})

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, tuple[Reply, ...]]]:
        """Yields each question with its replies as they arrive."""
        rest = iter(questions)
        running: dict[Future[tuple[Reply, ...]], Question] = {}
        pool = ThreadPoolExecutor(self._batch)
        try:
            while True:
                while len(running) < self._batch and (question := next(rest, None)) is not None:
                    running[pool.submit(self._answer, question)] = question
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    # How each kind of question is asked -------------------------------------------------------------------------------

    def _answer(self, question: Question) -> tuple[Reply, ...]:
        try:
            match question.prompt:
                case Completion(images=images) if images:
                    return (Reply(text="", refusal="plain completions of a server take no pictures"),)
                case Completion(text=text, stops=stops):
                    body = {"prompt": text, "stop": list(stops)} if stops else {"prompt": text}
                    return self._generate("/completions", body, question)
                case Chat(messages=messages, tools=tools):
                    plain = [
                        Message.from_dict(each, where=f"messages[{i}]").to_dict() for i, each in enumerate(messages)
                    ]
                    offered = {"tools": list(tools)} if tools else {}
                    return self._generate("/chat/completions", {"messages": plain, **offered}, question)
                case Choice() as choice:
                    return (self._choose(choice),)
                case Passage() as passage:
                    return (self._read(passage),)
                case Compare():
                    raise ConfigError(
                        "--url: comparing with a reference needs the models' logits; load both with MODEL"
                    )
        except PromptError as error:
            return (Reply(text="", refusal=str(error)),)

    def _generate(self, path: str, body: dict[str, Any], question: Question) -> tuple[Reply, ...]:
        limit = self._limit(body, question.max_new_tokens)
        body = body | {"max_tokens": limit, "temperature": question.temperature, "top_p": 1.0, "n": question.n}
        body |= {"seed": question.seed} if question.temperature > 0 else {}
        answer = self._post(path, body)
        replies = []
        for choice in _choices(answer, question.n):
            message = choice.get("message")
            text = _said(message) if isinstance(message, dict) else choice.get("text")
            finish = choice.get("finish_reason")
            details: dict[str, Any] = {"finish": finish}
            if finish == "length" and limit < question.max_new_tokens:
                details["cut_at"] = limit
            replies.append(Reply(text=text or "", details=details))
        return tuple(replies)

    def _limit(self, body: Mapping[str, Any], wanted: int) -> int:
        """Returns how many tokens to ask for: where half of the context is not enough, what the prompt leaves."""
        if self.context_len is None or wanted <= self.context_len // 2:
            return wanted
        n_prompt = self._count({name: body[name] for name in ("prompt", "messages") if name in body})
        return wanted if n_prompt is None else max(1, min(wanted, self.context_len - n_prompt))

    def _choose(self, choice: Choice) -> Reply:
        start = len(choice.text.rstrip())
        logprobs = [self._logprob(choice.text + each, start)[0] for each in choice.continuations]
        best = logprobs.index(max(logprobs))
        return Reply(text=choice.labels[best], details={"logprobs": logprobs})

    def _read(self, passage: Passage) -> Reply:
        if passage.images:
            raise PromptError("plain completions of a server take no pictures")
        logprob, n_tokens = self._logprob(passage.text, 0)
        return Reply(text=Likelihood(logprob, n_tokens).write())

    def _logprob(self, text: str, start: int) -> tuple[float, int]:
        """Returns the log-probability of the tokens of `text` that reach beyond character `start`, and their number."""
        assert self._echoes, "or an error was raised"
        answer = self._post("/completions", {"prompt": text, **ECHO})
        offsets, logprobs = _echoed(answer, text)
        ends = [*offsets[1:], len(text)]
        found = [value for value, end in zip(logprobs, ends, strict=True) if end > start and value is not None]
        return sum(found), len(found)

    @cached_property
    def _echoes(self) -> bool:
        """True: the server tells how probable it finds a prompt. Raises ConfigError where it does not."""
        try:
            _, logprobs = _echoed(self._post("/completions", {"prompt": PROBE, **ECHO}), PROBE)
            if all(each is None for each in logprobs):
                raise PromptError("all of them are null")
        except (PromptError, ConfigError) as error:
            raise ConfigError(
                f"--url {self._url}: this task needs log-probabilities of prompts (completions, echo and logprobs), "
                f"and this server gives none ({error}): take one that does, such as puna serve, or another task"
            ) from error
        return True

    # HTTP -------------------------------------------------------------------------------------------------------------

    def _card(self, model: str | None) -> dict[str, Any]:
        """Returns what the server says of the model, as far as it says anything."""
        listed = self._request("/models", None).get("data")
        cards = (
            [card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)] if listed else []
        )
        if model is None and not cards:
            raise ConfigError(f"--url {self._url}: lists no model; name one as MODEL")
        return next((card for card in cards if model in (None, card["id"])), {"id": model})

    def _count(self, body: Mapping[str, Any]) -> int | None:
        try:
            count = self._request("/tokenize", {"model": self.name, **body}, base=self._url.removesuffix("/v1")).get(
                "count"
            )
        except (PromptError, ConfigError):
            return None
        return count if isinstance(count, int) else None

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._request(path, {"model": self.name, **body})

    def _request(self, path: str, body: Mapping[str, Any] | None, *, base: str | None = None) -> dict[str, Any]:
        """Returns the JSON object that answers. Raises PromptError for a request that the server refuses as such."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        url = (base or self._url) + path
        problem = ""
        for number in range(TRIES):
            if number:
                self._sleep(FIRST_PAUSE_SECONDS * 2 ** (number - 1))
            try:
                request = urllib.request.Request(url, data=data, headers=headers)
                with urllib.request.urlopen(request, timeout=self._timeout_seconds) as answer:
                    return _object(answer.read(), url)
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {_message(error.read())}"
                if error.code not in BUSY:
                    raise _refused(error.code, url, problem) from error
            except (urllib.error.URLError, HTTPException, OSError) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise DeviceError(f"--url {url}: no answer after {TRIES} tries ({problem}); the same command goes on later")


PROBE = "one two three four five"
ECHO = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0.0}


def _refused(status: int, url: str, problem: str) -> PromptError | ConfigError:
    if status in (401, 403):
        return ConfigError(f"--url {url}: refuses us ({problem}); give the key with --api-key-file")
    if status in (404, 405, 501):
        return ConfigError(f"--url {url}: is not served there ({problem}); check address and model")
    return PromptError(f"the server refuses it: {problem}")


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"--url {url}: answers something other than JSON; give an OpenAI-style address") from error
    if not isinstance(document, dict):
        raise ConfigError(f"--url {url}: answers {type(document).__name__}, not an object")
    return document


def _message(data: bytes) -> str:
    """Returns what an error body says, in OpenAI's shape or another."""
    try:
        document = json.loads(data)
        error = document.get("error", document)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = data.decode("utf-8", "replace")
    return " ".join(str(text).split())[:300]


def _choices(answer: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != n or not all(isinstance(each, dict) for each in choices):
        raise ConfigError(f"--url: {n} choices were asked for, and another number came back")
    return sorted(choices, key=lambda choice: int(choice.get("index") or 0))


def _said(message: Mapping[str, Any]) -> str:
    """Returns a message's words, and behind them the calls that the server read, as a model writes them."""
    calls = message.get("tool_calls")
    made = Message.from_dict({"role": "assistant", "tool_calls": calls}, where="the answer").tool_calls if calls else ()
    return (message.get("content") or "") + (call_text(made, "pythonic") if made else "")


def _echoed(answer: Mapping[str, Any], text: str) -> tuple[list[int], list[float | None]]:
    """Returns where each token of the echoed prompt begins in `text`, and its log-probability; None for the first.

    Offsets that count a begin-of-text token are shifted back. Raises PromptError where there is nothing of the kind.
    """
    (choice,) = _choices(answer, 1)
    given = choice.get("logprobs") or {}
    lists = [given.get(name) for name in ("tokens", "token_logprobs", "text_offset")]
    tokens, logprobs, offsets = (each if isinstance(each, list) else [] for each in lists)
    n_made = (answer.get("usage") or {}).get("completion_tokens", ECHO["max_tokens"])
    n = len(tokens) - n_made
    if not len(tokens) == len(logprobs) == len(offsets):
        raise PromptError("tokens, token_logprobs and text_offset differ in length")
    if n < 1:
        raise PromptError("no logprobs of the prompt came back")
    end = offsets[n] if n_made else offsets[n - 1] + len(tokens[n - 1])  # of the prompt
    return [max(0, offset - (end - len(text))) for offset in offsets[:n]], _numbers(logprobs[:n])


def _numbers(values: Sequence[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]
