"""Replies of the model that trains, by the engine that serves it: what online reinforcement learns from.

In: a model with whatever weights it has now, tasks, a seed. Out: samples: their ids, what each token's log-probability
was, where each token went, and what the reply is worth. The engine is made anew for each round, since what a cache
remembers belongs to weights that are gone. Same weights, tasks and seed give the same samples.
Reinforcement draws at temperature 1 without a nucleus: its gradient is right for no other distribution.
Not here: how a reply is judged (`rewards`), what is learnt (`reinforce`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from puna.engine.cache import kv_dtype, sequence_bytes
from puna.engine.engine import MAX_SEQUENCES, Engine
from puna.engine.request import Request, Sampling
from puna.errors import ConfigError, PromptError
from puna.model.transformer import Llama
from puna.prompt.message import Tool
from puna.prompt.render import Prompt, Renderer, ToolStyle
from puna.prompt.tokenizer import Tokenizer
from puna.train import chats, rewards
from puna.train.rewards import Judge


class Task(NamedTuple):
    """What the model is asked, rendered up to where its reply begins, and how the reply is judged."""

    id: str
    source: str
    prompt: Prompt
    answer: Mapping[str, Any]
    tools: tuple[Tool, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply. ids: its tokens, the one that ended it included, if one did; logprobs: of each, in nats, as the engine
    had it; routes [n M k]: the experts behind each token, by layer with experts; reward within 0..1, 0 if it did not
    end by itself."""

    task: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    routes: tuple[tuple[tuple[int, ...], ...], ...]
    reward: float
    text: str


class Wish(NamedTuple):
    """How replies are drawn: so many of each task, of at most `max_new_tokens`; at temperature 0 the most probable."""

    n: int
    max_new_tokens: int
    seed: int
    temperature: float = 1.0


def read_tasks(
    files: Sequence[str],
    renderer: Renderer,
    style: ToolStyle,
    judges: Mapping[str, Judge] | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> Iterator[Task]:
    """Yields the tasks of chat files: lines that end with a user's turn and say what is asked for as `answer`, or
    else get the one `otherwise`.

    Raises ConfigError and PromptError, naming file and line, for what cannot be read or judged.
    """
    for file in files:
        for chat in chats.read(Path(file)):
            messages = chat.messages
            while messages and messages[-1].role == "assistant":
                messages = messages[:-1]
            answer = chat.facts.get("answer", otherwise)
            rewards.check(answer, chat.where, judges)
            try:
                prompt = renderer.render(messages, chat.tools, tool_style=style)
            except PromptError as error:
                raise PromptError(f"{chat.where}: {error}") from error
            yield Task(chat.id, chat.source, prompt, answer, chat.tools)


def roll(
    model: Llama, tasks: Mapping[int, Task], tokenizer: Tokenizer, wish: Wish, judges: Mapping[str, Judge] | None = None
) -> list[Sample]:
    """Returns `wish.n` replies to each task, one task after the other.

    Raises ConfigError for more replies of one task than the engine decodes at once, PromptError as the engine does.
    """
    if wish.n > MAX_SEQUENCES:
        raise ConfigError(f"reinforce.samples: {wish.n} is more than {MAX_SEQUENCES}, which are decoded at once")
    engine = _engine(model, max(len(task.prompt.ids) for task in tasks.values()) + wish.max_new_tokens, tokenizer)
    owners = {engine.add(_request(task, number, wish, tokenizer)): number for number, task in tasks.items()}
    grown: dict[tuple[int, int], _Growing] = {}
    while not engine.is_idle:
        for event in engine.step():
            reply = grown.setdefault((owners[event.request_id], event.sample), _Growing([], [], []))
            assert event.token is not None and event.logprobs is not None and event.routes is not None, "all were asked"
            reply.ids.append(event.token)
            reply.logprobs.append(event.logprobs.chosen)
            reply.routes.append(tuple(tuple(experts) for experts in event.routes.made))
    return [
        _judged(number, tasks[number], grown[number, sample], tokenizer, judges)
        for number in tasks
        for sample in range(wish.n)
    ]


def written(model: Llama, prompts: Sequence[Prompt], tokenizer: Tokenizer, wish: Wish) -> list[str]:
    """Returns one continuation of each prompt, without the token that ended it. Draws from nothing but the seed.

    Raises PromptError as the engine does.
    """
    engine = _engine(model, max(len(prompt.ids) for prompt in prompts) + wish.max_new_tokens, tokenizer)
    owners: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        sampling = _sampling(number, wish, tokenizer)
        owners[engine.add(Request(ids=prompt.ids, tiles=prompt.tiles, sampling=sampling))] = number
    grown: list[list[int]] = [[] for _ in prompts]
    while not engine.is_idle:
        for event in engine.step():
            if event.token is not None:
                grown[owners[event.request_id]].append(event.token)
    return [tokenizer.decode([each for each in ids if each not in tokenizer.stop_ids]) for ids in grown]


class _Growing(NamedTuple):
    ids: list[int]
    logprobs: list[float]
    routes: list[tuple[tuple[int, ...], ...]]


def _engine(model: Llama, longest: int, tokenizer: Tokenizer) -> Engine:
    """An engine with room for as many of the longest replies as it decodes at once."""
    text = model.config.text
    room = 2 * MAX_SEQUENCES * sequence_bytes(text, longest, kv_dtype(None, model.embedding.weight.dtype))
    return Engine(model, forbidden_ids=range(tokenizer.vocab_size, text.vocab_size), kv_bytes=room)


def _request(task: Task, number: int, wish: Wish, tokenizer: Tokenizer) -> Request:
    sampling = replace(_sampling(number, wish, tokenizer), n_logprobs=0)
    return Request(ids=task.prompt.ids, tiles=task.prompt.tiles, sampling=sampling, n=wish.n, wants_routes=True)


def _sampling(number: int, wish: Wish, tokenizer: Tokenizer) -> Sampling:
    return Sampling(
        temperature=wish.temperature,
        top_p=1.0,
        seed=(wish.seed * 1_000_003 + number) % 2**31,
        max_new_tokens=wish.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
    )


def _judged(
    number: int, task: Task, grown: _Growing, tokenizer: Tokenizer, judges: Mapping[str, Judge] | None
) -> Sample:
    is_ended = grown.ids[-1] in tokenizer.stop_ids
    text = tokenizer.decode(grown.ids[:-1] if is_ended else grown.ids)
    worth = rewards.reward(text, task.answer, task.tools, judges) if is_ended else 0.0
    return Sample(number, tuple(grown.ids), tuple(grown.logprobs), tuple(grown.routes), worth, text)
