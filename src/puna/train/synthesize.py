"""Training data that a model writes: replies to tasks, of which those stay that a program or a model finds right.

In: a model's folder, files of tasks as `rollout.read_tasks` takes them, evaluation sets that must not be in what comes
out. Out: conversations as `puna tune` reads them, each with its provenance: which model and weights, how it was drawn,
what it was worth, and to whom. Dropped, and counted by reason: replies worth too little, to a program or to the model
that judges, those that were there already, those that hold a passage of an evaluation set. Stopped at any moment and
started again, it goes on behind the last finished tasks.
The card's models may be used like this: their licence names synthetic data and distillation.
Not here: how replies are judged (`rewards`, and whoever makes an `Opinion`), what a passage is (`prepare.overlap`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from puna import __version__
from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.prompt.message import Message
from puna.prompt.parse import parse
from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.quant import swap
from puna.train import chats
from puna.train.chats import Chat
from puna.train.prepare.overlap import Exams, holds, read_exams
from puna.train.prepare.words import plain, words
from puna.train.recipe import require
from puna.train.rewards import Judge
from puna.train.rollout import Sample, Task, Wish, read_tasks, roll
from puna.train.store import Progress
from puna.train.workbench import fingerprint
from puna.weights.checkpoint import load, open_config
from puna.weights.hub import resolve

AT_ONCE = 16
"""Tasks between two marks in the journal: what is lost when it is stopped."""

_ANY = {"kind": "any"}  # what a task is answered with that only a model judges
_TOLD_OTHERWISE = ("out", "against", "judge", "judge_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted.

    model         a name, a folder or a hub id; quantize: "int4", "int8" or "fp8", or empty
    n             replies to each task; temperature they are drawn at; least_reward: of one that stays
    best          only the best reply of each task stays, of equals the shortest
    against       files or folders of evaluation sets
    judge         a model that scores what programs let pass: a name, a folder or a hub id, or empty; with one, tasks
                  need no answer. judge_prompt: what it is told; least_score: of a reply that stays
    """

    model: str
    tasks: tuple[str, ...]
    out: Path
    quantize: str = ""
    n: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0
    seed: int = 1
    least_reward: float = 1.0
    best: bool = False
    against: tuple[Path, ...] = ()
    judge: str = ""
    judge_prompt: str = ""
    least_score: float = 0.75

    def __post_init__(self) -> None:
        known = ("", *swap.FORMATS)
        require(self.quantize in known, "quantize", self.quantize, f"one of {', '.join(swap.FORMATS)}, or left out")
        require(self.n > 0, "n", self.n, "positive")
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "positive")
        require(self.temperature >= 0, "temperature", self.temperature, "zero or more")
        require(0 <= self.least_reward <= 1, "least_reward", self.least_reward, "within 0..1")
        require(0 <= self.least_score <= 1, "least_score", self.least_score, "within 0..1")
        require(bool(self.tasks), "tasks", self.tasks, "one file at least")


class Opinion(Protocol):
    """A model that judges."""

    def scores(self, asked: Sequence[tuple[Sequence[Message], str]]) -> Sequence[float | None]:
        """Returns what each reply to a conversation is worth, within 0..1; None where both are too long to be read."""
        ...


class Made(NamedTuple):
    """What came of it: tasks done, replies drawn, lines written, and replies that were dropped, by reason."""

    tasks: int
    replies: int
    kept: int
    dropped: dict[str, int]


def synthesize(
    order: Order,
    say: Progress,
    judges: Mapping[str, Judge] | None = None,
    opinion: Callable[[Llama], Opinion] | None = None,
) -> Made:
    """Writes the conversations to `order.out`, beside which a journal lies until all is done.

    `opinion` makes who judges for `order.judge`; it is given the model that writes, which may be the same.
    Raises ConfigError where `out` exists without a journal of the same order, and as `read_tasks` and `load`.
    """
    home = resolve(order.model)
    judge = _judge(order)
    config, tokenizer = open_config(home), Tokenizer.load(home)
    written = _Written.opened(order, fingerprint(home), judge)
    exams = read_exams(list(order.against)) if order.against else None
    say(f"reads {home}")
    model = _load(home, order)
    assert judge is None or opinion is not None, "whoever names a judge says how it is asked"
    judging = None if judge is None or opinion is None else opinion(model)
    tasks = read_tasks(
        order.tasks, Renderer(tokenizer, config.vision), "pythonic", judges, None if judging is None else _ANY
    )
    asked_of = (chat for file in order.tasks for chat in chats.read(Path(file)))
    waiting = islice(zip(_documents(order), asked_of, tasks, strict=True), written.made.tasks, None)
    number = written.made.tasks
    while some := list(islice(waiting, AT_ONCE)):
        wish = Wish(order.n, order.max_new_tokens, order.seed, order.temperature)
        asked = {number + i: task for i, (_, _, task) in enumerate(some)}
        samples = roll(model, asked, tokenizer, wish, judges)
        replies = [Reply(i % order.n, sample) for i, sample in enumerate(samples)]
        if judging is not None:
            replies = _scored(judging, order, [chat for _, chat, _ in some for _ in range(order.n)], replies)
        for i, (document, _, task) in enumerate(some):
            written.add(document, task, replies[i * order.n : (i + 1) * order.n], exams)
        number += len(some)
        written.mark(len(some), len(samples))
        made = written.made
        say(f"{made.tasks} tasks, {made.replies} replies, {made.kept} kept, dropped: {made.dropped or 'none'}")
    written.close()
    return written.made


class Reply(NamedTuple):
    """A reply, which of its task's, and what the model that judges gave it, if one was asked."""

    number: int
    sample: Sample
    score: float | None = None


class _Written:
    """The file that grows, and its journal."""

    def __init__(self, order: Order, provenance: Mapping[str, Any]) -> None:
        self.order, self.provenance = order, provenance
        self.made = Made(0, 0, 0, {})
        self.journal = order.out.with_name(f"{order.out.name}.journal")
        self._known: set[str] = set()
        self._dropped: Counter[str] = Counter()
        self._lines: list[str] = []

    @classmethod
    def opened(cls, order: Order, weights: str, judge: Mapping[str, str] | None) -> "_Written":
        """A new file, or the one that an order like this was stopped at."""
        key = {
            name: str(getattr(order, name)) for name in order.__dataclass_fields__ if name not in _TOLD_OTHERWISE
        } | {"weights": weights, "against": [str(path) for path in order.against], "judge": judge}
        provenance = {
            "model": order.model,
            "weights": weights,
            "quantize": order.quantize,
            "temperature": order.temperature,
            "seed": order.seed,
            "date": datetime.now(UTC).date().isoformat(),
            "version": __version__,
            **({} if judge is None else {"judge": judge}),
        }
        self = cls(order, provenance)
        if self.journal.is_file():
            self._go_on(key)
        elif order.out.exists():
            raise ConfigError(f"{order.out}: exists; remove it or name another file")
        else:
            order.out.parent.mkdir(parents=True, exist_ok=True)
            order.out.touch()
            self.journal.write_text(json.dumps(key) + "\n", "utf-8")
        return self

    def add(
        self,
        document: Mapping[str, Any],
        task: Task,
        replies: Sequence[Reply],
        exams: Exams | None,
    ) -> None:
        """Takes the replies to one task that are worth it."""
        worthy = []
        for reply in replies:
            reason = _fault(self.order, reply)
            if reason:
                self._dropped[reason] += 1
            else:
                worthy.append(reply)
        if self.order.best and len(worthy) > 1:
            self._dropped["not the best"] += len(worthy) - 1
            worthy = [max(worthy, key=_value)]
        for reply in worthy:
            line = _line(document, task, reply, self.provenance)
            key = json.dumps(line["messages"], ensure_ascii=False)
            if key in self._known:
                self._dropped["there already"] += 1
            elif exams is not None and holds(exams, words(plain(_text_of(line["messages"])))):
                self._dropped["in an evaluation set"] += 1
            else:
                self._known.add(key)
                self._lines.append(json.dumps(line, ensure_ascii=False) + "\n")

    def mark(self, n_tasks: int, n_replies: int) -> None:
        """Writes what was taken, and then that it was."""
        with self.order.out.open("a", encoding="utf-8") as file:
            file.writelines(self._lines)
        kept = self.made.kept + len(self._lines)
        self._lines.clear()
        dropped = {name: count for name, count in self._dropped.items() if count}
        self.made = Made(self.made.tasks + n_tasks, self.made.replies + n_replies, kept, dropped)
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"bytes": self.order.out.stat().st_size, **self.made._asdict()}) + "\n")

    def close(self) -> None:
        """Ends the journal: the file is whole."""
        self.journal.unlink()

    def _go_on(self, key: Mapping[str, Any]) -> None:
        first, *marks = self.journal.read_text("utf-8").splitlines(keepends=True)
        if json.loads(first) != key:
            raise ConfigError(
                f"{self.journal}: is of another order; finish that one, or remove it and {self.order.out}"
            )
        whole = [json.loads(line) for line in marks if line.endswith("\n")]
        n_bytes = whole[-1].pop("bytes") if whole else 0
        if whole:
            self.made = Made(**whole[-1])
            self._dropped.update(self.made.dropped)
        with self.order.out.open("r+b") as file:
            file.truncate(n_bytes)
        for line in self.order.out.read_text("utf-8").splitlines():
            self._known.add(json.dumps(json.loads(line)["messages"], ensure_ascii=False))


def _documents(order: Order) -> Iterator[Mapping[str, Any]]:
    """The lines as they stand. Raises ConfigError where pictures would lie elsewhere than the file that shows them."""
    for file in map(Path, order.tasks):
        for number, document in chats.documents(file):
            if file.parent.resolve() != order.out.parent.resolve() and any(chats.pictures(document, file.parent)):
                raise ConfigError(f"{order.out}: {file}, line {number} shows pictures; name a file in {file.parent}")
            yield document


def _judge(order: Order) -> Mapping[str, str] | None:
    """Says who judges: the model, its weights, and a digest of what it is told."""
    if not order.judge:
        return None
    prompt = hashlib.sha256(order.judge_prompt.encode()).hexdigest()
    return {"model": order.judge, "weights": fingerprint(resolve(order.judge)), "prompt": prompt}


def _scored(opinion: Opinion, order: Order, of: Sequence[Chat], replies: Sequence[Reply]) -> list[Reply]:
    """Returns the replies with their scores, those that a program lets pass."""
    asked = [i for i, reply in enumerate(replies) if not _is_worthless(order, reply)]
    scores = opinion.scores([(_asked(of[i]), replies[i].sample.text) for i in asked])
    known = dict(zip(asked, scores, strict=True))
    return [reply._replace(score=known.get(i)) for i, reply in enumerate(replies)]


def _asked(chat: Chat) -> Sequence[Message]:
    """Returns what the reply answers: the conversation without what an assistant says at its end."""
    messages = chat.messages
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return messages


def _is_worthless(order: Order, reply: Reply) -> bool:
    return reply.sample.reward < order.least_reward or not reply.sample.text


def _fault(order: Order, reply: Reply) -> str:
    """Says why a reply is dropped, empty where it is not."""
    if _is_worthless(order, reply):
        return "worth too little"
    if not order.judge:
        return ""
    if reply.score is None:
        return "too long to judge"
    return "judged too low" if reply.score < order.least_score else ""


def _value(reply: Reply) -> tuple[float, float, int]:
    """By this the best reply is found."""
    return reply.score or 0.0, reply.sample.reward, -len(reply.sample.ids)


def _line(document: Mapping[str, Any], task: Task, reply: Reply, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The task as it stood, its reply behind it."""
    asked = list(document["messages"])
    while asked and asked[-1].get("role") == "assistant":
        asked.pop()
    read = parse(reply.sample.text, task.tools)
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(getattr(part, "text", "") for part in read.content),
    }
    if read.tool_calls:
        said["tool_calls"] = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for i, call in enumerate(read.tool_calls)
        ]
    origin = {**provenance, "number": reply.number, "task": task.id, "reward": reply.sample.reward}
    if reply.score is not None:
        origin["judge"] = {**provenance["judge"], "score": reply.score}
    return {**document, "id": f"{task.id}-{reply.number}", "messages": [*asked, said], "provenance": origin}


def _text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """All that is said in a conversation."""
    texts = []
    for message in messages:
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if "text" in part]
    return "\n".join(texts)


def _load(home: Path, order: Order) -> Llama:
    """The model as it decodes fastest here."""
    policy = swap.Policy.in_memory(order.quantize) if order.quantize else None  # type: ignore[arg-type]
    return load(home, dtype=torch.bfloat16, place=swap.placer(policy, torch.bfloat16)).requires_grad_(False)
