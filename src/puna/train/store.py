"""Documents as numbers on disk: token ids, loss weights and image tiles, memory-mapped.

In: documents as JSON lines, plain (`content`) or chat (`messages`), a tokenizer and the tile sizes of a vision tower.
Out: a `Store`, in a folder named by a digest of all of that, so that it is made once and never stale. Not here: the
order in which documents are seen and how they share rows (`pack`).

What is learnt: all text of a plain document and its end; of a chat, the assistant's text and the token that ends its
turn. Never image slots, headers or what others say.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from puna.config import VisionConfig
from puna.errors import ConfigError, PromptError, WeightsError
from puna.prompt.message import ImagePart, Message, Part, TextPart
from puna.prompt.render import Prompt, Renderer
from puna.prompt.tiles import cut, tile_ids
from puna.prompt.tokenizer import Tokenizer

FORMAT = 1
"""Changes when the files of a store change their meaning: old stores are then made anew."""

INDEX = "index.json"
"""The file that completes a store."""

Progress = Callable[[str], None]


class Encoded(NamedTuple):
    """One document: token ids, loss weight (0 or 1) of each, and the pictures behind its image slots, in order."""

    ids: list[int]
    weights: list[int]
    pictures: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """All documents of one file.

    ids [n tokens] and weights uint8 [n tokens] of all documents one after another; document i owns the tokens
    offsets[i] to offsets[i+1] and the entries tile_offsets[i] to tile_offsets[i+1] of tile_refs, which are rows of
    tiles uint8 [n tiles 3 S S]: pictures that many documents share are held once.
    sources[i] indexes source_names; names[i] is the document's id; sets[i] its set (of held-out documents), or "".
    facts: what whoever wrote it found worth keeping, JSON values.
    home: its folder; checks and tile_checks uint32: CRC-32 of each document's ids and weights and of each tile, None
    in stores of earlier versions, which are not checked.
    """

    ids: NDArray[Any]
    weights: NDArray[np.uint8]
    tiles: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    tile_offsets: NDArray[np.int64]
    tile_refs: NDArray[np.int64]
    sources: NDArray[np.int64]
    source_names: tuple[str, ...]
    names: tuple[str, ...]
    sets: tuple[str, ...]
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    home: Path = Path()
    checks: NDArray[np.uint32] | None = None
    tile_checks: NDArray[np.uint32] | None = None

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    def check(self, document: int) -> None:
        """Raises WeightsError where a document's numbers on disk, or tiles, are not those that were written."""
        own = slice(self.offsets[document], self.offsets[document + 1])
        tiles = self.tile_refs[self.tile_offsets[document] : self.tile_offsets[document + 1]]
        is_whole = self.checks is None or _check(self.ids[own], self.weights[own]) == self.checks[document]
        if is_whole and self.tile_checks is not None:
            is_whole = all(_check(self.tiles[tile]) == self.tile_checks[tile] for tile in tiles)
        if not is_whole:
            raise _damaged(self.home, f"document {self.names[document]}")


def tokenise(
    documents: str | Path, tokenizer: str | Path, vision: VisionConfig | None, folder: str | Path, progress: Progress
) -> Store:
    """Returns the store of `documents`, made under `folder` when it is not there yet.

    `progress` is told how far it is. An interrupted run leaves only a folder ending in `.partial`; run again. Two
    processes may make the same store at the same time: the first to finish wins, and both get the same.
    Raises ConfigError for a missing file, PromptError naming the line of a document that cannot be read.
    """
    source, vocabulary = Path(documents), Path(tokenizer)
    for name, file in (("data.documents", source), ("data.tokenizer", vocabulary)):
        if not file.exists():
            raise ConfigError(f"{name}: {file} does not exist; prepare the corpus first (scripts/corpus)")
    digest = _digest(source, vocabulary, vision)
    home = Path(folder) / f"{source.stem}-{digest[:16]}"

    def write(folder: Path) -> None:
        _write(source, Encoder(Tokenizer.load(vocabulary), vision, source.parent), folder, digest, progress)

    return made(home, write)


def made(home: Path, write: Callable[[Path], None]) -> Store:
    """Returns the store in folder `home`, which `write` fills where there is none yet."""
    if not (home / INDEX).is_file():
        partial = home.with_name(f"{home.name}.{uuid.uuid4().hex[:8]}.partial")  # a process's number may come again
        partial.mkdir(parents=True)
        write(partial)
        _publish(partial, home)
    return open_store(home)


def open_store(home: str | Path) -> Store:
    """Returns the store in folder `home`; large arrays stay on disk until they are read.

    Raises WeightsError, naming file and remedy, where one is not as long as it was written."""
    home = Path(home)
    index = json.loads((home / INDEX).read_text(encoding="utf-8"))
    arrays = np.load(home / "index.npz")
    tile_shape = (index["n_tiles"], 3, index["tile_size"], index["tile_size"])
    return Store(
        ids=_mapped(home / "ids.bin", index["dtype"], (index["n_tokens"],)),
        weights=_mapped(home / "weights.bin", "uint8", (index["n_tokens"],)),
        tiles=_mapped(home / "tiles.bin", "uint8", tile_shape),
        offsets=arrays["offsets"],
        tile_offsets=arrays["tile_offsets"],
        tile_refs=arrays["tile_refs"],
        sources=arrays["sources"],
        source_names=tuple(index["source_names"]),
        names=tuple(index["names"]),
        sets=tuple(index["sets"]),
        digest=index["digest"],
        facts=index.get("facts", {}),
        home=home,
        checks=arrays.get("checks"),
        tile_checks=arrays.get("tile_checks"),
    )


class Encoder:
    """Turns one parsed document into ids, loss weights and the pictures it refers to. Pictures lie under `root`."""

    def __init__(self, tokenizer: Tokenizer, vision: VisionConfig | None, root: Path) -> None:
        self.tokenizer = tokenizer
        self.vision = vision
        self.root = root
        self.renderer = Renderer(tokenizer, vision)
        self.special = tokenizer.special
        self.after_header = len(tokenizer.encode("\n\n"))
        self.assistant = tokenizer.encode("assistant")
        self._pictures: dict[str, Image.Image] = {}

    def __call__(self, document: Mapping[str, Any]) -> Encoded:
        """Raises PromptError for a document that is neither plain nor chat, or that holds pictures for a text model."""
        if "content" in document:
            return self._plain(document["content"])
        if "messages" in document:
            return self._chat(document["messages"])
        raise PromptError(f"document: keys {sorted(document)}; it needs content or messages")

    def asked(self, message: Mapping[str, Any]) -> Prompt:
        """Returns the prompt that has the model answer a message of a chat document."""
        return self.renderer.render([self._message(message, [])])

    def tiles(self, picture: str) -> NDArray[np.uint8]:
        """Returns the tiles of a picture as bytes [I 3 S S], before normalisation."""
        assert self.vision is not None
        pixels = cut(self._open(picture), tile_size=self.vision.tile_size, max_tiles=self.vision.max_tiles).pixels
        return (pixels * 0.5 + 0.5).mul(255).round().byte().numpy()  # exact: pixels are (byte / 255 - 0.5) / 0.5

    def _plain(self, parts: Sequence[Mapping[str, Any]]) -> Encoded:
        ids, weights, pictures = [self.special["<|begin_of_text|>"]], [0], []
        for part in parts:
            if part["type"] == "image":
                picture = part["path"]
                new = self._slots(picture)
                pictures.append(picture)
            else:
                new = self.tokenizer.encode(part["text"])
            ids += new
            weights += [int(part["type"] == "text" and part.get("learnt", True))] * len(new)
        is_end_learnt = not parts or parts[-1].get("learnt", True)
        return Encoded([*ids, self.special["<|end_of_text|>"]], [*weights, int(is_end_learnt)], pictures)

    def _slots(self, picture: str) -> list[int]:
        if self.vision is None:
            raise PromptError(
                f"document: picture {picture} for a model without vision; remove it or train another model"
            )
        tiles = cut(self._open(picture), tile_size=self.vision.tile_size, max_tiles=self.vision.max_tiles)
        return tile_ids(tiles.grid, self.vision.tokens_per_tile, self.special)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        pictures: list[str] = []
        turns = [self._message(message, pictures) for message in messages]
        ids = self.renderer.render(turns, reply=False).ids
        return Encoded(ids, self._assistant_weights(ids), pictures)

    def _message(self, message: Mapping[str, Any], pictures: list[str]) -> Message:
        content = message["content"]
        if isinstance(content, str):
            return Message(role=message["role"], content=(TextPart(text=content),))
        parts: list[Part] = []
        for part in content:
            if part["type"] == "image":
                pictures.append(part["path"])
                parts.append(ImagePart(image=self._open(part["path"])))
            else:
                parts.append(TextPart(text=part["text"]))
        return Message(role=message["role"], content=tuple(parts))

    def _assistant_weights(self, ids: Sequence[int]) -> list[int]:
        """1 from behind an assistant's header to the token that ends its turn, inclusive; 0 elsewhere."""
        start, end = self.special["<|header_start|>"], self.special["<|header_end|>"]
        ends = {self.special["<|eot|>"], self.special["<|eom|>"]}
        weights = [0] * len(ids)
        at = 0
        while at < len(ids):
            if ids[at] != start:
                at += 1
                continue
            close = ids.index(end, at)
            is_learnt = list(ids[at + 1 : close]) == self.assistant
            at = close + 1 + self.after_header
            while is_learnt and at < len(ids):
                weights[at] = 1
                at += 1
                if ids[at - 1] in ends:
                    break
        return weights

    def _open(self, picture: str) -> Image.Image:
        if picture not in self._pictures:
            if len(self._pictures) >= 4096:
                self._pictures.clear()
            with Image.open(self.root / picture) as image:
                self._pictures[picture] = image.convert("RGB")
        return self._pictures[picture]


class _Span(NamedTuple):
    """The tiles of one picture in the store."""

    first: int
    n: int


class Writer:
    """Appends documents to the files of a store in `folder`; `tiles` gives those of a picture by its name."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, vision: VisionConfig | None, tiles: Callable[[str], NDArray[np.uint8]]
    ) -> None:
        self.folder, self.tokenizer, self.vision = folder, tokenizer, vision
        self.dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self.ids: IO[bytes] = (folder / "ids.bin").open("wb")
        self.weights: IO[bytes] = (folder / "weights.bin").open("wb")
        self.tiles: IO[bytes] = (folder / "tiles.bin").open("wb")
        self.offsets, self.tile_offsets = [0], [0]
        self.tile_refs: list[int] = []
        self.n_tiles = 0
        self._tiles_of = tiles
        self._spans: dict[str, _Span] = {}
        self._names: list[str] = []
        self._sets: list[str] = []
        self._sources: list[int] = []
        self._checks: list[int] = []
        self._tile_checks: list[int] = []
        self._source_numbers: dict[str, int] = {}

    def add(self, encoded: Encoded, *, name: str, source: str, set_name: str = "") -> None:
        """Appends one document."""
        ids, weights = np.asarray(encoded.ids, dtype=self.dtype), np.asarray(encoded.weights, dtype=np.uint8)
        self.ids.write(ids.tobytes())
        self.weights.write(weights.tobytes())
        self._checks.append(_check(ids, weights))
        for picture in encoded.pictures:
            span = self._span(picture)
            self.tile_refs += range(span.first, span.first + span.n)
        self.offsets.append(self.offsets[-1] + len(encoded.ids))
        self.tile_offsets.append(len(self.tile_refs))
        self._names.append(name)
        self._sets.append(set_name)
        self._sources.append(self._source_numbers.setdefault(source, len(self._source_numbers)))

    def close(self, digest: str, facts: Mapping[str, Any] | None = None) -> None:
        """Completes the store; the index comes last."""
        for file in (self.ids, self.weights, self.tiles):
            file.close()
        self._check_slots()
        np.savez(
            self.folder / "index.npz",
            offsets=np.asarray(self.offsets, dtype=np.int64),
            tile_offsets=np.asarray(self.tile_offsets, dtype=np.int64),
            tile_refs=np.asarray(self.tile_refs, dtype=np.int64),
            sources=np.asarray(self._sources, dtype=np.int64),
            checks=np.asarray(self._checks, dtype=np.uint32),
            tile_checks=np.asarray(self._tile_checks, dtype=np.uint32),
        )
        index = {
            "digest": digest,
            "dtype": self.dtype,
            "n_tokens": self.offsets[-1],
            "n_tiles": self.n_tiles,
            "tile_size": 0 if self.vision is None else self.vision.tile_size,
            "source_names": list(self._source_numbers),
            "names": self._names,
            "sets": self._sets,
            "facts": dict(facts or {}),
        }
        (self.folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def _span(self, picture: str) -> _Span:
        if picture not in self._spans:
            tiles = self._tiles_of(picture)
            self.tiles.write(tiles.tobytes())
            self._tile_checks += [_check(tile) for tile in tiles]
            self._spans[picture] = _Span(self.n_tiles, len(tiles))
            self.n_tiles += len(tiles)
        return self._spans[picture]

    def _check_slots(self) -> None:
        """Every tile must have its patch tokens: else features would land in the wrong places."""
        if self.vision is None:
            return
        ids = np.fromfile(self.ids.name, dtype=self.dtype)
        n_slots = int((ids == self.tokenizer.special["<|patch|>"]).sum())
        assert n_slots == len(self.tile_refs) * self.vision.tokens_per_tile, "patch tokens and tiles do not match"


def _write(documents: Path, encode: Encoder, folder: Path, digest: str, progress: Progress) -> None:
    """Fills `folder` with the store of `documents`."""
    writer = Writer(folder, encode.tokenizer, encode.vision, encode.tiles)
    total = documents.stat().st_size
    n_documents = 0
    for number, done, document in lines_of(documents):
        try:
            writer.add(
                encode(document),
                name=str(document.get("id", number)),
                source=str(document.get("source", "")),
                set_name=str(document.get("set", "")),
            )
        except (PromptError, KeyError, OSError) as error:
            raise PromptError(f"{documents}, line {number}: {error!r}; correct this document") from error
        n_documents += 1
        if number % 2000 == 0:
            progress(
                f"tokenise {documents.name}: {100 * done / total:.0f} %, "
                f"{number} documents, {writer.offsets[-1]} tokens"
            )
    writer.close(digest)
    progress(
        f"tokenise {documents.name}: done, {n_documents} documents, {writer.offsets[-1]} tokens, {writer.n_tiles} tiles"
    )


def _publish(partial: Path, home: Path) -> None:
    """Gives a finished store its name, unless another process was faster."""
    try:
        os.replace(partial, home)
    except OSError:
        if not (home / INDEX).is_file():
            raise
        shutil.rmtree(partial)


def lines_of(documents: Path) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yields line number from 1, bytes read and parsed document of each line that is not blank."""
    done = 0
    with documents.open("rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if line.strip():
                try:
                    yield number, done, json.loads(line)
                except json.JSONDecodeError as error:
                    raise PromptError(f"{documents}, line {number}: not JSON ({error}); correct the file") from error


def _digest(documents: Path, tokenizer: Path, vision: VisionConfig | None) -> str:
    """A digest of everything that decides the content of a store, with the bytes of all pictures beside the file."""
    digest = hashlib.sha256(f"{FORMAT} {vision!r}".encode())
    vocabulary = sorted(p for p in tokenizer.iterdir() if p.is_file()) if tokenizer.is_dir() else [tokenizer]
    pictures = sorted(p for p in (documents.parent / "pictures").rglob("*") if p.is_file())
    for file in [documents, *vocabulary, *pictures]:
        digest.update(file.name.encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _mapped(file: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file of no bytes cannot be mapped: it is an empty array."""
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    if not file.is_file() or file.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise _damaged(file.parent, file.name)
    return np.memmap(file, dtype=dtype, mode="r", shape=shape)


def _check(*arrays: NDArray[Any]) -> int:
    """Returns the CRC-32 of the bytes of arrays, one after another."""
    value = 0
    for array in arrays:
        value = zlib.crc32(array.tobytes(), value)
    return value


def _damaged(home: Path, what: str) -> WeightsError:
    return WeightsError(f"store {home}: {what} is damaged; remove that folder and start as before: it is made again")
