"""Documents that hold what a model will be examined on, so that they can be left out of its training.

Every text in the records of an evaluation set is a passage; a long one is several, in pieces of at most 64 words, so
that an excerpt is found too. A passage is in a document where at least half of its distinct runs of 8 words are.
Shorter texts, of 5 to 7 words, must stand there whole, and count only where they say something: at least 3 words that
are no small words, and in one record only, for a phrase that several records share is the form of the set ("none of the
above"). A record of several texts, all of them shorter, is found where all stand in one document, if they have 5 words
together. What is shorter still cannot be told from common speech; `Exams` counts it. In scripts without spaces, four
characters count as a word.

The sizes are ours. GPT-3 (arXiv 2005.14165, appendix C) took one run of 13 words, which finds less; a share of a
passage leaves quotations of a common sentence alone.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.errors import ConfigError
from puna.train.prepare.language import all_small_words
from puna.train.prepare.words import Hashes, Words, plain, runs, words

RUN, SHORTEST, PASSAGE = 8, 5, 64  # words
_TELLING = 3  # words of a short text that are no small words
_CHARACTERS = 4  # that count as a word where words are not set apart
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv")


class Exams(NamedTuple):
    """The passages of evaluation sets, by their runs of words.

    runs      n -> the sorted hashes of runs of n words, and the passage of each: uint64 [runs], int64 [runs]
    needed    of each passage, how many of its runs make it found: int64 [passages]
    n_records, n_too_short   records read, and those that cannot be found
    """

    runs: dict[int, tuple[Hashes, NDArray[np.int64]]]
    needed: NDArray[np.int64]
    n_records: int
    n_too_short: int


class _Passage(NamedTuple):
    runs: dict[int, Hashes]  # by their length
    needed: int


def read_exams(paths: list[Path]) -> Exams:
    """Returns the passages of files, or of all files in folders. Raises ConfigError for none."""
    read = (record for path in paths for file in _files(path) for record in _records(file))
    records = [[words(plain(text)) for text in _texts(record)] for record in read]
    shared = Counter(key for each in records for key in {text.hashes.tobytes() for text in each})
    passages: list[_Passage] = []
    n_too_short = 0
    for texts in records:
        distinct = list({text.hashes.tobytes(): text for text in texts if len(text.hashes)}.values())
        found = [passage for text in distinct for passage in _passages(text, shared[text.hashes.tobytes()])]
        found = found or _together(distinct)
        passages += found
        n_too_short += not found
    return Exams(_index(passages), np.array([each.needed for each in passages], np.int64), len(records), n_too_short)


def holds(exams: Exams, found: Words) -> bool:
    """Whether a document with these words holds a passage."""
    hits = []
    for n, (known, owners) in exams.runs.items():
        if n >= SHORTEST * _CHARACTERS and not found.alone.any():
            continue
        ours = np.unique(runs(found.hashes, n))
        first, last = np.searchsorted(known, ours), np.searchsorted(known, ours, "right")
        first, counts = first[last > first], (last - first)[last > first]
        if len(first):
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            hits.append(owners[np.repeat(first, counts) + within])
    if not hits:
        return False
    passages, counts = np.unique(np.concatenate(hits), return_counts=True)
    return bool((counts >= exams.needed[passages]).any())


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; name files or folders of evaluation sets")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    wanted = [f for f in files if f.is_file() and (f.suffix in _SUFFIXES or Path(f.stem).suffix in _SUFFIXES)]
    if not wanted:
        raise ConfigError(f"{path}: holds no evaluation set; puna reads {' '.join(_SUFFIXES)}, and the same with .gz")
    return wanted


def _records(path: Path) -> Iterator[Any]:
    """Yields the records of a file: values of JSON, or the whole of a plain text."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text, kind = data.decode("utf-8-sig"), Path(path.name.removesuffix(".gz")).suffix
        if kind in (".jsonl", ".ndjson"):
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        elif kind == ".json":
            document = json.loads(text)
            yield from document if isinstance(document, list) else [document]
        elif kind == ".txt":
            yield text
        else:
            yield from text.splitlines()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); mend it, or name the files that can") from error


def _texts(value: Any) -> Iterator[str]:
    """Yields every string in a value of JSON; keys are the form of a set and stay out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _texts(each))


def _passages(text: Words, n_records: int) -> Iterator[_Passage]:
    """Yields the passages of one text; `n_records`: how many have it."""
    scale, n = _scale(text), len(text.hashes)
    if n >= RUN * scale:
        for piece in np.array_split(text.hashes, -(-n // (PASSAGE * scale))):
            distinct = np.unique(runs(piece, RUN * scale))
            yield _Passage({RUN * scale: distinct}, -(-len(distinct) // 2))
    elif n >= SHORTEST * scale and n_records == 1 and _n_telling(text) >= _TELLING:
        yield _whole([text], SHORTEST * scale)


def _together(texts: list[Words]) -> list[_Passage]:
    """Returns the passage of a record of short texts only, if together they are long enough."""
    n_words = sum(len(text.hashes) / _scale(text) for text in texts)
    enough = len(texts) > 1 and n_words >= SHORTEST and sum(map(_n_telling, texts)) >= _TELLING
    return [_whole(texts, SHORTEST)] if enough else []


def _n_telling(text: Words) -> int:
    return int(np.count_nonzero(~np.isin(text.hashes, all_small_words())))


def _whole(texts: list[Words], n: int) -> _Passage:
    """Returns a passage of texts that must all stand in a document whole, by their runs of at most `n` words."""
    by_length: dict[int, list[Hashes]] = {}
    for text in texts:
        length = min(len(text.hashes), n)
        by_length.setdefault(length, []).append(runs(text.hashes, length))
    distinct = {length: np.unique(np.concatenate(each)) for length, each in by_length.items()}
    return _Passage(distinct, sum(map(len, distinct.values())))


def _scale(text: Words) -> int:
    """Returns how many of its words count as one."""
    return _CHARACTERS if 2 * np.count_nonzero(text.alone) > len(text.alone) else 1


def _index(passages: list[_Passage]) -> dict[int, tuple[Hashes, NDArray[np.int64]]]:
    """Returns the field `runs` of Exams."""
    pairs: dict[int, list[tuple[Hashes, NDArray[np.int64]]]] = {}
    for number, passage in enumerate(passages):
        for n, hashes in passage.runs.items():
            pairs.setdefault(n, []).append((hashes, np.full(len(hashes), number)))
    index = {}
    for n, each in sorted(pairs.items()):
        hashes, owners = (np.concatenate(column) for column in zip(*each, strict=True))
        order = np.argsort(hashes, kind="stable")
        index[n] = (hashes[order], owners[order])
    return index
