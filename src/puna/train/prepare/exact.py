"""Documents that say the same, word for word: the first stays.

Compared is a digest of the words, so case, width, punctuation and spaces make no difference.
"""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.train.prepare.spill import Records, load, n_parts, split
from puna.train.prepare.words import Hashes

DIGEST = np.dtype([("document", "<i8"), ("high", "<u8"), ("low", "<u8")])
"""The number of a document and the digest of its words."""
_COPIES = 4  # of a part in memory while it is sorted


def digest(hashes: Hashes) -> tuple[int, int]:
    """Returns the digest of a document's words, 128 bits."""
    both = blake2b(hashes.astype("<u8").tobytes(), digest_size=16).digest()
    return int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")


def copies(
    digests: Iterator[Records], n_documents: int, folder: Path, memory_bytes: int
) -> Iterator[NDArray[np.int64]]:
    """Yields the numbers of documents that an earlier one equals, some at a time; `digests` in order of documents."""
    for path in split(digests, "high", folder, n_parts(n_documents, DIGEST, memory_bytes, _COPIES)):
        part = load(path, DIGEST)
        order = np.lexsort((part["document"], part["low"], part["high"]))
        part = part[order]
        same = (part["high"][1:] == part["high"][:-1]) & (part["low"][1:] == part["low"][:-1])
        yield np.sort(part["document"][1:][same])
        path.unlink()
