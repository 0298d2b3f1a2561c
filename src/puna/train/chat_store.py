"""Conversations as numbers on disk: token ids, and of each whether it is learnt.

In: files that `chats` reads, a renderer, and what to learn. Out: a `Store`, made once for the same content and choices.
Learnt are the words of the assistant, its calls, and the token that ends its turn; its header only where that is
wished; never slots of pictures nor what others say. A plain text is learnt with its end, as in pre-training. A
preference becomes two documents that follow each other, the better one first, in which only the answers are learnt.
Not here: how documents share rows (`pack`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.config import VisionConfig
from puna.errors import PromptError
from puna.prompt.message import Message
from puna.prompt.render import Renderer, ToolStyle
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.vocab import (
    BEGIN_OF_TEXT,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    HEADER_END,
    HEADER_START,
    IMAGE_END,
    IMAGE_START,
)
from puna.train import chats
from puna.train.chats import Chat
from puna.train.store import Encoded, Progress, Store, Writer, made

FORMAT = 1
"""Changes when the files of a store change their meaning: old stores are then made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What is learnt, and what happens to a conversation longer than `longest` tokens, as `tune_recipe` explains it."""

    longest: int
    too_long: str = "refuse"
    learn: str = "all"
    learn_header: bool = False
    tool_style: ToolStyle = "pythonic"


def store_chats(
    files: Sequence[str | Path],
    folder: str | Path,
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    vision: VisionConfig | None,
    choices: Choices,
    say: Progress,
) -> Store:
    """Returns the store of all conversations of `files`, made below `folder` when it is not there yet.

    Its facts count conversations and what became of them. Raises ConfigError and PromptError as `chats.read` does, and
    PromptError naming file and line for a conversation that is too long, where that is refused, that mixes preferences
    with others, or in which nothing is learnt.
    """
    paths = [Path(file) for file in files]
    digest = _digest(paths, tokenizer_file, vision, choices)
    encode = ChatEncoder(tokenizer, vision, choices)

    def write(home: Path) -> None:
        writer = Writer(home, tokenizer, vision, encode.tiles)
        counts: Counter[str] = Counter()
        pairs: set[bool] = set()
        for chat in chain.from_iterable(chats.read(path, texts=True) for path in paths):
            counts["conversations"] += 1
            pairs.add(bool(chat.chosen))
            if len(pairs) > 1:
                raise PromptError(
                    f"{chat.where}: preferences and other conversations are mixed; keep them in two files"
                )
            documents = encode.documents(chat, counts)
            for number, document in enumerate(documents):
                name = chat.id if len(documents) == 1 else f"{chat.id} {('chosen', 'rejected')[number]}"
                writer.add(document, name=name, source=chat.source)
                counts["tokens"] += len(document.ids)
                counts["learnt"] += sum(document.weights)
                counts["pictures"] += len(document.pictures)
            if counts["conversations"] % 2000 == 0:
                say(f"chats: {counts['conversations']} conversations, {counts['tokens']} tokens")
        writer.close(digest, {"counts": counts, "is_preference": pairs == {True}})
        say("chats: " + ", ".join(f"{counts[name]} {name}" for name in ("conversations", "tokens", "learnt")))

    return made(Path(folder) / f"chats-{digest[:16]}", write)


class ChatEncoder:
    """Turns conversations into documents."""

    def __init__(self, tokenizer: Tokenizer, vision: VisionConfig | None, choices: Choices) -> None:
        self.tokenizer, self.renderer = tokenizer, Renderer(tokenizer, vision)
        self.choices = choices
        special = tokenizer.special
        self.header = self.renderer.header("assistant")
        self.ends = {special[name] for name in (END_OF_TURN, END_OF_MESSAGE) if name in special}
        self.opens, self.closes = special[HEADER_START], special[HEADER_END]
        self.begin, self.end = special[BEGIN_OF_TEXT], special[END_OF_TEXT]
        self.image_start, self.image_end = special.get(IMAGE_START), special.get(IMAGE_END)
        self._tiles: dict[str, NDArray[np.uint8]] = {}

    def documents(self, chat: Chat, counts: Counter[str]) -> list[Encoded]:
        """Returns the documents of a conversation: none where it is dropped, two of a preference."""
        self._tiles.clear()  # of the one before
        if chat.text:
            return self._fitted([self.plain(chat.text)], chat, counts)
        if not chat.chosen:
            return self._fitted([self.encode(chat, chat.messages, chat.learnt)], chat, counts)
        ways = [(*chat.messages, *answer) for answer in (chat.chosen, chat.rejected)]
        before = [False] * len(chat.messages)
        learnt = [[*before, *(m.role == "assistant" for m in way[len(before) :])] for way in ways]
        return self._fitted([self.encode(chat, way, of) for way, of in zip(ways, learnt, strict=True)], chat, counts)

    def plain(self, text: str) -> Encoded:
        """Returns a text between the tokens that begin and end one."""
        ids = [self.begin, *self.tokenizer.encode(text), self.end]
        return Encoded(ids, [0, *[1] * (len(ids) - 1)], [])

    def encode(self, chat: Chat, messages: Sequence[Message], learnt: Sequence[bool]) -> Encoded:
        """Returns the ids of messages, loss weights, and names by which `tiles` knows their pictures.

        Raises PromptError, naming file and line, for what cannot be rendered.
        """
        try:
            prompt = self.renderer.render(messages, chat.tools, tool_style=self.choices.tool_style, reply=False)
        except PromptError as error:
            raise PromptError(f"{chat.where}: {error}") from error
        of_turns = [wanted for message, wanted in zip(messages, learnt, strict=True) if message.role == "assistant"]
        if self.choices.learn == "last":
            of_turns = [wanted and i == len(of_turns) - 1 for i, wanted in enumerate(of_turns)]
        weights = self._weights(prompt.ids, iter(of_turns))
        pictures = []
        if prompt.tiles is not None:
            tiles = (
                (prompt.tiles * 0.5 + 0.5).mul(255).round().byte().numpy()
            )  # exact: they are (byte / 255 - 0.5) / 0.5
            name = hashlib.sha256(tiles.tobytes()).hexdigest()
            self._tiles[name] = tiles
            pictures = [name]
        return Encoded(prompt.ids, weights, pictures)

    def tiles(self, name: str) -> NDArray[np.uint8]:
        """Returns the tiles uint8 [I 3 S S] of the pictures that the last conversation had."""
        return self._tiles[name]

    def _weights(self, ids: Sequence[int], wanted: Iterator[bool]) -> list[int]:
        """1 where the assistant speaks and it is wanted, its end token included; text never looks like a header."""
        weights, at, n = [0] * len(ids), 0, len(self.header)
        while at < len(ids):
            if ids[at] != self.opens or list(ids[at : at + n]) != self.header:
                at += 1
                continue
            end = next(i for i in range(at + n, len(ids)) if ids[i] in self.ends) + 1
            if next(wanted):
                first = at if self.choices.learn_header else at + n
                weights[first:end] = [1] * (end - first)
            at = end
        inside = False
        for i, each in enumerate(ids):
            inside = inside or each == self.image_start
            weights[i] = 0 if inside else weights[i]
            inside = inside and each != self.image_end
        return weights

    def _fitted(self, documents: list[Encoded], chat: Chat, counts: Counter[str]) -> list[Encoded]:
        """Returns documents that fit a row together, or none; the counts say what was done."""
        if not all(any(document.weights) for document in documents):
            raise PromptError(f"{chat.where}: nothing in it is learnt; give the assistant a turn that has words")
        length = sum(len(document.ids) for document in documents)
        if length <= self.choices.longest:
            return documents
        counts["too_long"] += 1
        match self.choices.too_long:
            case "refuse":
                raise PromptError(
                    f"{chat.where}: has {length} tokens, and a row {self.choices.longest}; raise batch.row_len, "
                    'or set data.too_long to "drop" or "truncate"'
                )
            case "truncate":
                room = self.choices.longest // len(documents)
                cut = [self._cut(document, room) for document in documents]
                if all(any(document.weights) for document in cut):
                    counts["truncated"] += 1
                    return cut
        counts["dropped"] += 1
        return []

    def _cut(self, document: Encoded, room: int) -> Encoded:
        """Returns the beginning of a document; where that would end within pictures, all without any of them."""
        if len(document.ids) <= room:
            return document
        stop = room
        if document.pictures and self.image_end in document.ids[room:]:
            return Encoded(document.ids[:0], document.weights[:0], [])
        return Encoded(document.ids[:stop], document.weights[:stop], document.pictures)


def _digest(files: Sequence[Path], tokenizer: Path, vision: VisionConfig | None, choices: Choices) -> str:
    """A digest of everything that decides the content of a store, the pictures' bytes included."""
    digest = hashlib.sha256(json.dumps([FORMAT, repr(vision), asdict(choices)]).encode())
    for file in [*files, tokenizer]:
        digest.update(file.read_bytes() if file.is_file() else b"")
    for file in files:
        for _, document in chats.documents(file):
            for picture in chats.pictures(document, file.parent):
                digest.update(hashlib.sha256(picture.read_bytes() if picture.is_file() else b"").digest())
    return digest.hexdigest()
