"""A text as numbers: one 64-bit hash a word, and hashes of runs of words. Comparing texts begins here.

Texts that differ in case, width, punctuation or spaces only have the same words. Letters, marks and digits make words;
in scripts that put no spaces between words, every character is one (a run of them then stands for a word). All
is arithmetic over whole arrays, modulo 2^64; the same text has the same hashes on every machine.
"""

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_LETTER, _ALONE = 1, 2  # what a character is, besides 0: a border
# Blocks whose writing has no spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_NO_SPACES = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
_LAST = 0x323AF
_BASE, _STEP, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD  # odd; the last is MurmurHash3's
_PERIOD = 1024  # characters after which a word's powers begin again


class Words(NamedTuple):
    """The words of a text.

    hashes   uint64 [words]
    alone    bool [words]: a character of a script without spaces
    lengths  int64 [words], in characters
    """

    hashes: Hashes
    alone: NDArray[np.bool_]
    lengths: NDArray[np.int64]


def plain(text: str) -> str:
    """Returns `text` without differences of width (NFKC) and case."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> Words:
    """Returns the words of `text`, which `plain` made so."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    kinds = _kinds()[np.minimum(codes, _LAST + 1)]
    before = np.concatenate((np.zeros(1, np.uint8), kinds[:-1])) if len(kinds) else kinds
    after = np.concatenate((kinds[1:], np.zeros(1, np.uint8))) if len(kinds) else kinds
    starts = np.flatnonzero((kinds == _ALONE) | ((kinds == _LETTER) & (before != _LETTER)))
    ends = np.flatnonzero((kinds == _ALONE) | ((kinds == _LETTER) & (after != _LETTER))) + 1
    if not len(starts):
        return Words(np.zeros(0, np.uint64), np.zeros(0, np.bool_), np.zeros(0, np.int64))
    codes, kinds = codes[starts[0] :], kinds[starts[0] :]
    begins = starts - starts[0]
    # A polynomial in _BASE over the characters of each word.
    places = np.arange(len(codes)) - np.repeat(begins, np.diff(begins, append=len(codes)))
    terms = np.where(kinds > 0, _mixed(codes.astype(np.uint64)) * _powers()[places % _PERIOD], np.uint64(0))
    return Words(_mixed(np.add.reduceat(terms, begins)), kinds[begins] == _ALONE, ends - starts)


def runs(hashes: Hashes, n: int) -> Hashes:
    """Returns the hash of each run of `n` words, in order: uint64 [words - n + 1], or none."""
    count = max(len(hashes) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * np.uint64(_STEP) + hashes[k : k + count]
    return _mixed(total)


def phrase(text: str) -> Hashes:
    """Returns the hashes of the words of a text as it is written."""
    return words(plain(text)).hashes


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(33))) * np.uint64(_MIX)
    return (values ^ (values >> np.uint64(29))) * np.uint64(_BASE)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Returns what each character is; the last entry stands for all above it."""
    kinds = np.zeros(_LAST + 2, np.uint8)
    kinds[:-1] = [unicodedata.category(chr(code))[0] in "LMN" for code in range(_LAST + 1)]
    for first, last in _NO_SPACES:
        kinds[first : last + 1] *= _ALONE
    return kinds


@cache
def _powers() -> Hashes:
    """Returns _BASE modulo 2^64 to the powers 0 to _PERIOD - 1."""
    factors = np.full(_PERIOD, _BASE, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
