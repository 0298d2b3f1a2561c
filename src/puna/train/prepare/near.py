"""Documents that say almost the same: whatever resembles an earlier document goes, whether or not that one stayed.

So the first of each cluster stays. MinHash (Broder 1997) estimates how much two documents share, as Jaccard's index of
their runs of two words, or of four characters where words are not set apart: each of 128 hash functions keeps its
minimum, and the share of equal minima is the estimate, with a standard deviation of at most 0.044. Documents with equal
minima in one of 32 bands of 4 are compared (two that share half are compared with a probability of 0.87, three
fifths 0.99, two thirds 0.999), and resemble each other from an estimate of 0.5.

Bands lie in files by their key, so memory does not grow. Of the documents of a band, each is compared with the first
and with the one before it, so that a band of a million costs two million comparisons.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from puna.train.prepare.spill import Records, load, n_parts, split
from puna.train.prepare.words import Words, runs

N_HASHES, N_BANDS = 128, 32
SIGNATURE = np.dtype([("document", "<i8"), ("minima", "<u4", N_HASHES)])
"""The number of a document and the minima of its hash functions."""
_BAND = np.dtype([("key", "<u8"), ("row", "<i8")])
_ALIKE = 0.5
_RUN, _RUN_ALONE = 2, 4  # words, characters
_COPIES = 12  # of a part in memory while it is sorted and paired
_AT_ONCE = 4096  # pairs compared at a time; runs hashed at a time
_DRAW = np.random.default_rng(4)  # the hash functions are part of what a signature means: never draw others
_FACTORS = _DRAW.integers(0, 2**31, N_HASHES, np.uint32) * 2 + 1
_SHIFTS = _DRAW.integers(0, 2**32, N_HASHES, np.uint32)
_MIX = _DRAW.integers(0, 2**63, N_HASHES // N_BANDS, np.uint64) * 2 + 1


def signature(words: Words) -> NDArray[np.uint32] | None:
    """Returns the minima of a document, uint32 [N_HASHES]; None for one with less than a run of words."""
    pairs, fours = runs(words.hashes, _RUN), runs(words.hashes, _RUN_ALONE)
    alone = words.alone[: len(fours)] & words.alone[_RUN_ALONE - 1 :]
    hashes = pairs
    if alone.any():
        hashes = np.concatenate((pairs[~(words.alone[:-1] & words.alone[1:])], fours[alone]))
    if not len(hashes):
        return None
    minima = np.full(N_HASHES, 2**32 - 1, np.uint32)
    low = (hashes >> np.uint64(32)).astype(np.uint32)
    for start in range(0, len(low), _AT_ONCE):
        values = low[start : start + _AT_ONCE] * _FACTORS[:, None] + _SHIFTS[:, None]
        np.minimum(minima, values.min(1), out=minima)
    return minima


def alike(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Returns the estimated share of two documents' runs: uint32 [.., N_HASHES], twice, to float64 [..]."""
    share: NDArray[np.float64] = (a == b).mean(-1)
    return share


def repeats(signatures: Path, folder: Path, memory_bytes: int) -> Iterator[NDArray[np.int64]]:
    """Yields the numbers of documents that resemble an earlier one, some at a time, some more than once.

    `signatures` is a file of SIGNATURE in order of documents.
    """
    n_rows = signatures.stat().st_size // SIGNATURE.itemsize
    parts = n_parts(n_rows * N_BANDS, _BAND, memory_bytes, _COPIES)
    with signatures.open("rb") as file:
        for path in split(_bands(signatures), "key", folder, parts):
            pairs = _pairs(load(path, _BAND))
            for start in range(0, len(pairs), _AT_ONCE):
                earlier, later = pairs[start : start + _AT_ONCE].T
                a, b = _rows(file, earlier), _rows(file, later)
                yield np.unique(b["document"][alike(a["minima"], b["minima"]) >= _ALIKE])
            path.unlink()


def _bands(signatures: Path) -> Iterator[Records]:
    """Yields the keys of all bands of all rows of a file of signatures."""
    row = 0
    with signatures.open("rb") as file:
        while data := file.read(512 * SIGNATURE.itemsize):
            minima = np.frombuffer(data, SIGNATURE)["minima"].reshape(-1, N_BANDS, N_HASHES // N_BANDS)
            keys = (minima.astype(np.uint64) * _MIX).sum(-1, dtype=np.uint64)
            keys = (keys ^ (keys >> np.uint64(32)) ^ np.arange(N_BANDS, dtype=np.uint64)) * _MIX[0]
            bands = np.empty(keys.shape, _BAND)
            bands["key"] = keys ^ (keys >> np.uint64(31))
            bands["row"] = np.arange(row, row + len(minima))[:, None]
            row += len(minima)
            yield bands.reshape(-1)


def _pairs(bands: Records) -> NDArray[np.int64]:
    """Returns the rows to compare, each pair once and in order of the earlier: int64 [pairs, 2]."""
    bands = bands[np.lexsort((bands["row"], bands["key"]))]
    new = np.concatenate((np.ones(1, np.bool_), bands["key"][1:] != bands["key"][:-1]))
    first = np.maximum.accumulate(np.where(new, np.arange(len(bands)), 0))
    later = np.flatnonzero(~new)
    ends = np.concatenate((np.stack((first[later], later), 1), np.stack((later - 1, later), 1)))
    pairs = bands["row"][ends]
    return np.unique(pairs, axis=0)


def _rows(file: BinaryIO, numbers: NDArray[np.int64]) -> Records:
    """Returns rows of a file of signatures, in the order asked for."""
    wanted, where = np.unique(numbers, return_inverse=True)
    found = np.empty(len(wanted), SIGNATURE)
    for k, number in enumerate(wanted):
        file.seek(int(number) * SIGNATURE.itemsize)
        found[k] = np.frombuffer(file.read(SIGNATURE.itemsize), SIGNATURE)[0]
    return found[where]
