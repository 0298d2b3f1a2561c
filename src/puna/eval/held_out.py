"""How well a model answers what its training held out: questions about pictures, and texts it has never read.

In: an assistant and a `held_out.jsonl` as `scripts/corpus` writes it. Out: a record, by set and language: exact matches
of greedy answers with and without the picture, and bits per byte of texts. The answers without a picture say how much
the questions and the frequency of the answers alone give away.
Not here: the published benchmarks, whose rows have tasks of their own.
"""

import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from puna.chat import Assistant
from puna.errors import ConfigError
from puna.prompt.message import open_image
from puna.prompt.render import Prompt

ANSWER_TOKENS = 24  # the longest accepted answer of the shipped sets has fewer
BATCH = 64  # prompts decoded together

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """Of `n` questions, how many greedy answers equal an accepted one, with and without the picture."""

    n: int
    right: int
    right_without_picture: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def stderr(self) -> float:
        """The standard error of `share`, from the binomial distribution."""
        return math.sqrt(self.share * (1 - self.share) / self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Texts of `n_bytes` in all that cost `bits`, with and without the picture they belong to."""

    n: int
    n_bytes: int
    bits: float
    bits_without_picture: float

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.n_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question and what came back, for a reader who wants to see."""

    id: str
    accepted: tuple[str, ...]
    answer: str
    answer_without_picture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Results by set and, within a set, by language; "all" is the whole set."""

    exactness: dict[str, dict[str, Exactness]]
    compression: dict[str, dict[str, Compression]]
    items: tuple[Item, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the record as the JSON document that `puna eval --json` prints."""
        exact = {
            name: {
                language: asdict(e)
                | {"score": e.share, "stderr": e.stderr, "score_without_picture": e.right_without_picture / e.n}
                for language, e in languages.items()
            }
            for name, languages in self.exactness.items()
        }
        packed = {
            name: {
                language: asdict(c)
                | {
                    "bits_per_byte": c.bits_per_byte,
                    "bits_per_byte_without_picture": c.bits_without_picture / c.n_bytes,
                }
                for language, c in languages.items()
            }
            for name, languages in self.compression.items()
        }
        return {"exactness": exact, "compression": packed, "items": [asdict(item) for item in self.items]}


def measure(assistant: Assistant, documents: Path, *, limit: int | None, progress: Progress) -> Record:
    """Returns what the assistant reaches on a `held_out.jsonl`; `limit` takes that many of each set and language.

    Raises ConfigError when the file is missing or a line of it cannot be read.
    """
    questions, texts = _read(documents, limit)
    items = _answer(assistant, documents.parent, questions, progress)
    exactness: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for question, item in zip(questions, items, strict=True):
        for language in (question["language"], "all"):
            exactness[question["set"]][language].append(item)
    return Record(
        exactness={name: {k: _exactness(v) for k, v in by.items()} for name, by in exactness.items()},
        compression=_compress(assistant, documents.parent, texts, progress),
        items=tuple(items),
    )


def matches(answer: str, accepted: Iterable[str]) -> bool:
    """Says whether an answer equals an accepted one, but for case, Unicode form, space around and a final period."""
    return _folded(answer) in {_folded(text) for text in accepted}


def _read(documents: Path, limit: int | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the questions and the plain texts of the file."""
    if not documents.is_file():
        raise ConfigError(f"data: {documents} does not exist; prepare it with scripts/corpus or name its folder")
    taken: dict[tuple[str, str], int] = defaultdict(int)
    questions: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for number, line in enumerate(documents.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            document = json.loads(line)
            key = (document["set"], document["language"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"data: {documents}, line {number}: {error!r}; make the file again") from error
        taken[key] += 1
        if limit is None or taken[key] <= limit:
            (questions if "answer" in document else texts).append(document)
    return questions, texts


def _answer(
    assistant: Assistant, folder: Path, questions: Sequence[Mapping[str, Any]], progress: Progress
) -> list[Item]:
    items: list[Item] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        seen, blind = (
            _greedy(assistant, [_question(assistant, folder, q, keep) for q in part]) for keep in (True, False)
        )
        for question, answer, guess in zip(part, seen, blind, strict=True):
            items.append(
                Item(
                    id=question["id"],
                    accepted=tuple(question["answer"]),
                    answer=answer,
                    answer_without_picture=guess,
                )
            )
        progress(f"held out: {len(items)} of {len(questions)} questions")
    return items


def _greedy(assistant: Assistant, prompts: Sequence[Prompt]) -> list[str]:
    answers = assistant.answer_all(prompts, temperature=0.0, max_new_tokens=ANSWER_TOKENS)
    return [sample.text for (sample,) in answers]


def _question(assistant: Assistant, folder: Path, question: Mapping[str, Any], keep_picture: bool) -> Prompt:
    """Renders a question up to its answer, with the picture or without."""
    messages = []
    for message in question["messages"][:-1]:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image", "image": folder / part["path"]} if part["type"] == "image" else part
                for part in content
                if keep_picture or part["type"] != "image"
            ]
        messages.append({"role": message["role"], "content": content})
    return assistant.prompt(messages)


def _compress(
    assistant: Assistant, folder: Path, texts: Sequence[Mapping[str, Any]], progress: Progress
) -> dict[str, dict[str, Compression]]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    for number, document in enumerate(texts, start=1):
        text = "".join(part["text"] for part in document["content"] if part["type"] == "text")
        pictures = [
            open_image(folder / part["path"], where=document["id"])
            for part in document["content"]
            if part["type"] == "image"
        ]
        bits, blind = _bits(assistant, text, pictures), _bits(assistant, text, [])
        for language in (document["language"], "all"):
            for i, value in enumerate((1, len(text.encode()), bits, blind)):
                sums[document["set"], language][i] += value
        if number % 50 == 0 or number == len(texts):
            progress(f"held out: {number} of {len(texts)} texts")
    result: dict[str, dict[str, Compression]] = defaultdict(dict)
    for (name, language), (n, n_bytes, bits, blind) in sums.items():
        result[name][language] = Compression(n=int(n), n_bytes=int(n_bytes), bits=bits, bits_without_picture=blind)
    return dict(result)


def _bits(assistant: Assistant, text: str, pictures: Sequence[Image.Image]) -> float:
    """The bits that a text costs behind its pictures; what lies beyond the context is not counted as known."""
    prompt = assistant.text_prompt(text, pictures)
    n_text = len(assistant.tokenizer.encode(text))
    losses = -assistant.logits(prompt.ids, prompt.tiles)[:-1].log_softmax(-1)
    targets = prompt.ids[1:]
    rows = range(len(targets) - n_text, len(targets))
    return sum(float(losses[row, targets[row]]) for row in rows) / math.log(2)


def _exactness(items: Sequence[Item]) -> Exactness:
    return Exactness(
        n=len(items),
        right=sum(matches(item.answer, item.accepted) for item in items),
        right_without_picture=sum(matches(item.answer_without_picture, item.accepted) for item in items),
    )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().rstrip(".").casefold()
