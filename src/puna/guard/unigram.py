"""Text to the pieces of a SentencePiece unigram vocabulary, as DeBERTa's tokenizers have it.

In: a `tokenizer.json` of the model kind "Unigram", and text. Out: ids, best path first and only. Texts never become
special tokens. Normalisation follows the file: a precompiled table of characters, Unicode forms, stripping, replacing.
Not here: what the ids mean (`deberta`).

Source: tokenizers 0.23, `models/unigram/model.rs` (best path, penalty of unknown characters, fused unknowns) and
`normalizers/precompiled.rs`; sentencepiece, `normalizer.cc` and darts-clone (layout of the table).
"""

import base64
import json
import struct
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from puna.errors import ConfigError

UNKNOWN_PENALTY = 10.0  # below the least probable piece
MARK = "\u2581"  # stands for a blank
MAX_GRAPHEME_BYTES = 6  # longer ones are looked up character by character

Step = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unigram:
    """A vocabulary: `pieces` to id and log-probability, and how text is made ready for it."""

    pieces: Mapping[str, tuple[int, float]]
    special: Mapping[str, int]
    unknown_id: int
    unknown_score: float
    steps: Sequence[Step]
    longest: int

    @classmethod
    def load(cls, file: Path) -> "Unigram":
        """Reads a `tokenizer.json`. Raises ConfigError if it is of another kind or has a step that is not known."""
        try:
            document = json.loads(file.read_bytes())
            model = document["model"]
            if model["type"] != "Unigram" or model.get("byte_fallback"):
                raise ConfigError(f"{file}: model is {model['type']!r}; a unigram without byte fallback is needed")
            special = {str(token["content"]): int(token["id"]) for token in document.get("added_tokens") or ()}
            pieces = {str(piece): (number, float(score)) for number, (piece, score) in enumerate(model["vocab"])}
            unknown_id = int(model["unk_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: no tokenizer.json of a unigram ({type(error).__name__}: {error})") from error
        usable = {piece: entry for piece, entry in pieces.items() if piece not in special and piece}
        _check_blanks(document.get("pre_tokenizer"), file)
        return cls(
            pieces=usable,
            special=special,
            unknown_id=unknown_id,
            unknown_score=min((score for _, score in pieces.values()), default=0.0) - UNKNOWN_PENALTY,
            steps=_steps(document.get("normalizer"), file),
            longest=max(map(len, usable), default=1),
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, none special; an empty text has none."""
        return [number for _, number in self.cut(text)]

    def cut(self, text: str) -> list[tuple[str, int]]:
        """Returns the pieces of `text` with their ids, blanks written as MARK; unknown characters in a row are one."""
        for step in self.steps:
            text = step(text)
        if not text:
            return []
        marked = text.replace(" ", MARK)
        marked = marked if marked.startswith(MARK) else MARK + marked
        found: list[tuple[str, int]] = []
        for word in regex.findall(rf"{MARK}[^{MARK}]*|^[^{MARK}]+", marked):
            found += self._best(word)
        return found

    def _best(self, word: str) -> list[tuple[str, int]]:
        """Returns the most probable cut of one word; of equal ones, the first found."""
        paths: list[tuple[float, int, int] | None] = [(0.0, 0, -1), *[None] * len(word)]  # score, start, id of the last
        for start in range(len(word)):
            before = paths[start]
            if before is None:
                continue
            is_known = False
            for end in range(start + 1, min(start + self.longest, len(word)) + 1):
                if (entry := self.pieces.get(word[start:end])) is not None:
                    is_known = is_known or end == start + 1
                    _improve(paths, end, (before[0] + entry[1], start, entry[0]))
            if not is_known:
                _improve(paths, start + 1, (before[0] + self.unknown_score, start, self.unknown_id))
        found: list[tuple[str, int]] = []
        end = len(word)
        while end:
            path = paths[end]
            assert path is not None, "every character is reached, known or not"
            start, number = path[1:]
            if number == self.unknown_id and found and found[-1][1] == number:
                found[-1] = (word[start:end] + found[-1][0], number)
            else:
                found.append((word[start:end], number))
            end = start
        return found[::-1]


def _improve(paths: list[tuple[float, int, int] | None], end: int, path: tuple[float, int, int]) -> None:
    known = paths[end]
    if known is None or path[0] > known[0]:
        paths[end] = path


# Getting text ready -----------------------------------------------------------------------------------------------


def _steps(document: Mapping[str, Any] | None, file: Path) -> list[Step]:
    """Returns the steps of a normalizer. Raises ConfigError for one that is not known, since it might change ids."""
    if document is None:
        return []
    match document["type"]:
        case "Sequence":
            return [step for each in document["normalizers"] for step in _steps(each, file)]
        case "Precompiled":
            return [CharacterMap.read(base64.b64decode(document["precompiled_charsmap"])).apply]
        case "NFC" | "NFKC" as form:
            return [lambda text: unicodedata.normalize(form, text)]
        case "Lowercase":
            return [str.lower]
        case "Strip":
            left, right = document.get("strip_left", False), document.get("strip_right", False)
            return [*([str.lstrip] if left else []), *([str.rstrip] if right else [])]
        case "Replace":
            pattern, content = document["pattern"], document["content"]
            found = regex.compile(pattern["Regex"] if "Regex" in pattern else regex.escape(pattern["String"]))
            return [lambda text: found.sub(lambda _: content, text)]
        case other:
            raise ConfigError(f"{file}: normalizer {other!r} is not known, and would change the ids")


def _check_blanks(document: Mapping[str, Any] | None, file: Path) -> None:
    """Raises ConfigError unless blanks become MARKs, one before the text, and nothing else happens."""
    parts = (document or {}).get("pretokenizers", [document])
    kinds = [part.get("type") if part else None for part in parts]
    blanks: Mapping[str, Any] = next((part for part in parts if part and part.get("type") == "Metaspace"), {})
    first = blanks.get("prepend_scheme", "always" if blanks.get("add_prefix_space", True) else "never")
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or first != "always":
        raise ConfigError(f"{file}: pre_tokenizer {kinds} is not known; Metaspace with a leading blank is")
    if blanks.get("replacement", MARK) != MARK or not blanks.get("split", True):
        raise ConfigError(f"{file}: Metaspace must write blanks as U+2581 and split there")


@dataclass(frozen=True, slots=True)
class CharacterMap:
    """A table of what characters become, as SentencePiece stores it: a trie of `units`, then texts that end in 0."""

    units: tuple[int, ...]
    texts: bytes

    @classmethod
    def read(cls, content: bytes) -> "CharacterMap":
        """Returns the table in `content`. Raises ConfigError if it is cut."""
        size = int.from_bytes(content[:4], "little")
        if size % 4 or len(content) < 4 + size:
            raise ConfigError(f"precompiled_charsmap: names {size} bytes of trie and has {len(content) - 4}")
        return cls(struct.unpack(f"<{size // 4}I", content[4 : 4 + size]), content[4 + size :])

    def apply(self, text: str) -> str:
        """Returns `text` with every grapheme, or else every character, replaced that the table knows."""
        done = []
        for grapheme in regex.findall(r"\X", text):
            small = len(grapheme.encode()) < MAX_GRAPHEME_BYTES
            whole = self.replacement(grapheme) if small else None
            done.append(whole if whole is not None else "".join(self._of_character(char) for char in grapheme))
        return "".join(done)

    def _of_character(self, char: str) -> str:
        found = self.replacement(char)
        return char if found is None else found

    def replacement(self, text: str) -> str | None:
        """Returns what stands for the shortest beginning of `text` in the table, None where it has none."""
        if not self.units:
            return None
        place = _offset(self.units[0])
        for byte in text.encode():
            place ^= byte
            if byte == 0 or place >= len(self.units) or self.units[place] & 0x800000FF != byte:
                return None
            unit = self.units[place]
            place ^= _offset(unit)
            if unit >> 8 & 1:
                start = self.units[place] & 0x7FFFFFFF
                return self.texts[start : self.texts.index(0, start)].decode()
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
