"""The child-safety filter of pre-training data: it compares documents with lists that the operator supplies.

Such lists come from those who are allowed to keep them (hotlines and their partners) and are never part of puna;
without them nothing is filtered here, and the report says so. A folder holds any of these, one entry a line, with # for
remarks:

domains.txt     hosts; a document whose `url` is there, or below it, goes
sha256.txt      hex digests, of the text in UTF-8, or of a picture's file as in the document's `image_sha256`
pdq.txt         perceptual hashes of pictures, 64 hex digits; a document goes where one in its `image_pdq` is within 31
                bits, the distance that PDQ's authors propose (facebook/ThreatExchange, pdq/README.md)
phrases.txt     phrases each of which suffices
subjects.txt, contexts.txt   phrases; a document with one of each within 50 words goes

Matching is on words without case, width or punctuation. A finding is the name of a list: which entry matched, and
what it matched, is told to nobody and kept nowhere. Doubt is decided against the document. Pictures themselves are not
opened here: whoever downloads them adds the hashes.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from puna.errors import ConfigError
from puna.train.prepare.words import Hashes, phrase, runs

LISTS = ("domains.txt", "sha256.txt", "pdq.txt", "phrases.txt", "subjects.txt", "contexts.txt")
_DISTANCE_BITS = 31
_NEAR_WORDS = 50

_Phrases = dict[int, Hashes]  # words in the phrase -> sorted hashes


class Lists(NamedTuple):
    """What to compare with; see the file's docstring. pdq: uint8 [entries, 32 bytes]."""

    domains: frozenset[str]
    digests: frozenset[str]
    pdq: NDArray[np.uint8]
    phrases: _Phrases
    subjects: _Phrases
    contexts: _Phrases


def read_lists(folder: Path) -> Lists:
    """Returns the lists of a folder. Raises ConfigError where there is none, or an entry that could never match."""
    if not any((folder / name).is_file() for name in LISTS):
        raise ConfigError(f"{folder}: holds none of {', '.join(LISTS)}; put the lists of your partner there")
    stray = sorted({path.name for path in folder.glob("*.txt")} - set(LISTS))
    if stray:
        raise ConfigError(f"{folder}: {', '.join(stray)} would never be read; lists are {', '.join(LISTS)}")
    pdq = [bytes.fromhex(entry) for entry in _hex_entries(folder / "pdq.txt")]
    phrases, subjects, contexts = (_read_phrases(folder / name) for name in LISTS[3:])
    if bool(subjects) != bool(contexts):
        raise ConfigError(f"{folder}: subjects.txt and contexts.txt work together only; one of them is empty")
    return Lists(
        frozenset(entry.casefold().strip(".") for entry in _entries(folder / "domains.txt")),
        frozenset(_hex_entries(folder / "sha256.txt")),
        np.frombuffer(b"".join(pdq), np.uint8).reshape(-1, 32),
        phrases,
        subjects,
        contexts,
    )


def finding(lists: Lists, text: str, record: Mapping[str, Any], hashes: Hashes) -> str | None:
    """Returns the list that a document is on, or None; `hashes`: of its words."""
    if lists.domains and _on_domain(lists.domains, record.get("url")):
        return "domains"
    if lists.digests:
        digests = {sha256(text.encode()).hexdigest(), *_strings(record.get("image_sha256"))}
        if not lists.digests.isdisjoint(digests):
            return "sha256"
    if len(lists.pdq) and any(_is_close(lists.pdq, each) for each in _strings(record.get("image_pdq"))):
        return "pdq"
    if len(_places(lists.phrases, hashes)):
        return "phrases"
    if len(subjects := _places(lists.subjects, hashes)) and len(contexts := _places(lists.contexts, hashes)):
        after = np.searchsorted(contexts, subjects)
        later = contexts[np.minimum(after, len(contexts) - 1)]
        earlier = contexts[np.maximum(after - 1, 0)]
        if np.minimum(abs(later - subjects), abs(earlier - subjects)).min() <= _NEAR_WORDS:
            return "subjects and contexts"
    return None


def _entries(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [entry for line in lines if (entry := line.split("#")[0].strip())]


def _hex_entries(path: Path) -> list[str]:
    entries = [entry.casefold() for entry in _entries(path)]
    wrong = next((n for n, entry in enumerate(entries, 1) if not re.fullmatch("[0-9a-f]{64}", entry)), None)
    if wrong:
        raise ConfigError(f"{path}: entry {wrong} is no hash of 64 hexadecimal digits")
    return entries


def _read_phrases(path: Path) -> _Phrases:
    by_length: dict[int, list[Hashes]] = {}
    for number, entry in enumerate(_entries(path), 1):
        hashes = phrase(entry)
        if not len(hashes):
            raise ConfigError(f"{path}: entry {number} has no word, so it would never match")
        by_length.setdefault(len(hashes), []).append(runs(hashes, len(hashes)))
    return {n: np.unique(np.concatenate(each)) for n, each in by_length.items()}


def _places(phrases: _Phrases, hashes: Hashes) -> NDArray[np.int64]:
    """Returns where phrases begin, sorted: int64 [places], in words."""
    places = [np.flatnonzero(np.isin(runs(hashes, n), known)) for n, known in phrases.items()]
    return np.sort(np.concatenate(places)) if places else np.zeros(0, np.int64)


def _on_domain(domains: frozenset[str], url: Any) -> bool:
    if not isinstance(url, str):
        return False
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return True  # a broken address is doubt
    parts = host.strip(".").split(".")
    return any(".".join(parts[k:]) in domains for k in range(len(parts)))


def _strings(value: Any) -> list[str]:
    """Returns the strings in a field that is one, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [each.casefold() for each in values if isinstance(each, str)]


def _is_close(known: NDArray[np.uint8], digits: str) -> bool:
    if not re.fullmatch("[0-9a-f]{64}", digits):
        return True  # what cannot be compared is doubt
    differing = known ^ np.frombuffer(bytes.fromhex(digits), np.uint8)
    return bool((np.bitwise_count(differing).sum(1) <= _DISTANCE_BITS).any())
