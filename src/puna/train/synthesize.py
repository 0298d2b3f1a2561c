"""Training data that a model writes: replies to tasks, of which those stay that a program finds right.

In: a model's folder, files of tasks as `rollout.read_tasks` takes them, evaluation sets that must not be in what comes
out. Out: conversations as `puna tune` reads them, each with its provenance: which model and weights, how it was drawn,
what it was worth. Dropped, and counted by reason: replies worth too little, those that were there already, those that
hold a passage of an evaluation set. Stopped at any moment and started again, it goes on behind the last finished tasks.
The card's models may be used like this: their licence names synthetic data and distillation.
Not here: how replies are judged (`rewards`), what a passage is (`prepare.overlap`).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna import __version__
from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.prompt.parse import parse
from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.quant import swap
from puna.train import chats
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted.

    model         a name, a folder or a hub id; quantize: "int4", "int8" or "fp8", or empty
    n             replies to each task; temperature they are drawn at; least_reward: of one that stays
    best          only the best reply of each task stays, of equals the shortest
    against       files or folders of evaluation sets
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

    def __post_init__(self) -> None:
        known = ("", *swap.FORMATS)
        require(self.quantize in known, "quantize", self.quantize, f"one of {', '.join(swap.FORMATS)}, or left out")
        require(self.n > 0, "n", self.n, "positive")
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "positive")
        require(self.temperature >= 0, "temperature", self.temperature, "zero or more")
        require(0 <= self.least_reward <= 1, "least_reward", self.least_reward, "within 0..1")
        require(bool(self.tasks), "tasks", self.tasks, "one file at least")


class Made(NamedTuple):
    """What came of it: tasks done, replies drawn, lines written, and replies that were dropped, by reason."""

    tasks: int
    replies: int
    kept: int
    dropped: dict[str, int]


def synthesize(order: Order, say: Progress, judges: Mapping[str, Judge] | None = None) -> Made:
    """Writes the conversations to `order.out`, beside which a journal lies until all is done.

    Raises ConfigError where `out` exists without a journal of the same order, and as `read_tasks` and `load`.
    """
    home = resolve(order.model)
    config, tokenizer = open_config(home), Tokenizer.load(home)
    written = _Written.opened(order, fingerprint(home))
    exams = read_exams(list(order.against)) if order.against else None
    say(f"reads {home}")
    model = _load(home, order)
    tasks = read_tasks(order.tasks, Renderer(tokenizer, config.vision), "pythonic", judges)
    waiting = islice(zip(_documents(order), tasks, strict=True), written.made.tasks, None)
    number = written.made.tasks
    while some := list(islice(waiting, AT_ONCE)):
        wish = Wish(order.n, order.max_new_tokens, order.seed, order.temperature)
        asked = {number + i: task for i, (_, task) in enumerate(some)}
        samples = roll(model, asked, tokenizer, wish, judges)
        for i, (document, task) in enumerate(some):
            written.add(document, task, samples[i * order.n : (i + 1) * order.n], exams)
        number += len(some)
        written.mark(len(some), len(samples))
        made = written.made
        say(f"{made.tasks} tasks, {made.replies} replies, {made.kept} kept, dropped: {made.dropped or 'none'}")
    written.close()
    return written.made


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
    def opened(cls, order: Order, weights: str) -> "_Written":
        """A new file, or the one that an order like this was stopped at."""
        key = {
            name: str(getattr(order, name)) for name in order.__dataclass_fields__ if name not in ("out", "against")
        } | {"weights": weights, "against": [str(path) for path in order.against]}
        provenance = {
            "model": order.model,
            "weights": weights,
            "quantize": order.quantize,
            "temperature": order.temperature,
            "seed": order.seed,
            "date": datetime.now(UTC).date().isoformat(),
            "version": __version__,
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

    def add(self, document: Mapping[str, Any], task: Task, samples: Sequence[Sample], exams: Exams | None) -> None:
        """Takes the replies to one task that are worth it."""
        worthy = [sample for sample in samples if sample.reward >= self.order.least_reward and sample.text]
        self._dropped["worth too little"] += len(samples) - len(worthy)
        if self.order.best and len(worthy) > 1:
            self._dropped["not the best"] += len(worthy) - 1
            worthy = [max(worthy, key=lambda sample: (sample.reward, -len(sample.ids)))]
        for sample in worthy:
            line = _line(document, task, sample, {**self.provenance, "number": samples.index(sample)})
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


def _line(document: Mapping[str, Any], task: Task, sample: Sample, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The task as it stood, its reply behind it."""
    asked = list(document["messages"])
    while asked and asked[-1].get("role") == "assistant":
        asked.pop()
    reply = parse(sample.text, task.tools)
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(getattr(part, "text", "") for part in reply.content),
    }
    if reply.tool_calls:
        said["tool_calls"] = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for i, call in enumerate(reply.tool_calls)
        ]
    return {
        **document,
        "id": f"{task.id}-{provenance['number']}",
        "messages": [*asked, said],
        "provenance": {**provenance, "task": task.id, "reward": sample.reward},
    }


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
