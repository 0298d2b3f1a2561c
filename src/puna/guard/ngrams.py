"""Text to hashed n-grams, the input of the embedded prompt-attack classifier.

In: text of any length. Out: sorted indices into a table of weights and how much each counts. Characters and words are
hashed with integer arithmetic on whole arrays; what stands further apart is seen by `phrases`. It does not know what is
learnt from them.
"""

import re
import unicodedata
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.guard import phrases

CHARACTER_BITS, WORD_BITS = 18, 17
N_CHARACTER_BUCKETS, N_WORD_BUCKETS = 2**CHARACTER_BITS, 2**WORD_BITS
CHARACTER_LENGTHS, WORD_LENGTHS = (2, 3, 4, 5), (1, 2, 3)

WORD = re.compile(r"\w+|[^\w\s]")
SPACED_LETTERS = re.compile(r"(?<!\w)\w(?:[ .\-_*]\w){3,}(?!\w)")
HYPHENATED = re.compile(r"(?<=[a-z])- ?(?=[a-z]{1,3}\b)")
# Odd constants of 64 bits, so that multiplying mixes all bits. Source: Knuth, TAOCP 3, section 6.4 (golden ratio).
MIX = np.uint64(0x9E3779B97F4A7C15)
STEP = np.uint64(0x100000001B3)


# Facts about the whole text that n-grams cannot see; each is 0 or 1. Those of `phrases` follow.
SHAPES = (
    "four or more questions",
    "question and answer pairs",
    "a word many times in a row",
    "long run of digits, dots or dashes",
    "capitals in a row",
    "persona in square brackets",
)
FACT_VALUE, PHRASE_VALUE = 0.3, 0.5
N_FEATURES = N_CHARACTER_BUCKETS + N_WORD_BUCKETS + len(SHAPES) + phrases.N_FACTS


class Features(NamedTuple):
    """Indices int64 [n], ascending, each once; values float32 [n]."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def normalise(text: str) -> str:
    """Returns `text` in one form: compatible characters, lower case, letters that stand apart joined, single spaces."""
    plain = unicodedata.normalize("NFKC", text).lower()
    joined = SPACED_LETTERS.sub(lambda run: re.sub(r"[ .\-_*]", "", run[0]), plain)
    return " ".join(joined.split())


def features(text: str) -> Features:
    """Returns the n-grams of characters and of words in `text`; each half has length 1 (Euclid), then the facts."""
    plain = f" {normalise(text)} "
    characters = _ngrams(np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64), CHARACTER_LENGTHS)
    hashed = np.array([zlib.crc32(word.encode()) for word in WORD.findall(plain)], dtype=np.uint64)
    words = _ngrams(hashed, WORD_LENGTHS)
    parts = [
        _buckets(characters, CHARACTER_BITS),
        _buckets(words, WORD_BITS) + N_CHARACTER_BUCKETS,
        np.flatnonzero(_shapes(text, plain)).astype(np.int64) + N_CHARACTER_BUCKETS + N_WORD_BUCKETS,
        np.flatnonzero(phrases.facts(plain)).astype(np.int64) + N_CHARACTER_BUCKETS + N_WORD_BUCKETS + len(SHAPES),
    ]
    lengths = [1 / np.sqrt(max(len(parts[0]), 1)), 1 / np.sqrt(max(len(parts[1]), 1)), FACT_VALUE, PHRASE_VALUE]
    values = np.concatenate([np.full(len(part), each) for part, each in zip(parts, lengths, strict=True)])
    return Features(np.concatenate(parts), values.astype(np.float32))


def _ngrams(symbols: NDArray[np.uint64], lengths: tuple[int, ...]) -> NDArray[np.uint64]:
    """Returns a 64-bit hash of each run of `lengths` symbols; the upper bits are the well mixed ones."""
    found, rolled = [], np.zeros(len(symbols), dtype=np.uint64)
    for n in range(1, max(lengths) + 1):
        if n > len(symbols):
            break
        rolled = rolled[: len(symbols) - n + 1] * STEP + symbols[n - 1 :] + np.uint64(n)
        if n in lengths:
            mixed = rolled * MIX
            found.append((mixed ^ (mixed >> np.uint64(29))) * MIX)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)


def _buckets(hashes: NDArray[np.uint64], n_bits: int) -> NDArray[np.int64]:
    """Returns the upper bits of `hashes` in ascending order, each once. Marking is faster than sorting."""
    is_there = np.zeros(1 << n_bits, dtype=np.bool_)
    is_there[(hashes >> np.uint64(64 - n_bits)).astype(np.int64)] = True
    return np.flatnonzero(is_there)


def _shapes(text: str, plain: str) -> NDArray[np.bool_]:
    return np.array(
        [
            len(re.findall(r"[?？؟]", text)) >= 4,
            len(re.findall(r"(?:^|\s)(?:q|question|a|answer)\s*:", plain)) >= 3,
            re.search(r"(?<!\w)(\w{2,})(?:\W+\1){5,}(?!\w)", plain) is not None,
            re.search(r"[\d.\-/ ]{40,}", plain) is not None,
            re.search(r"(?:\b[A-Z]{3,}\b\W+){3,}", text) is not None,
            re.search(r"[\[({*][A-Za-z]{2,12}[\])}*]:?", text) is not None,
        ]
    )
