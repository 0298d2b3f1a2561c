"""The steps of a preparation for datatrove, so that its executors run them: one machine, SLURM or Ray.

`pipelines` gives what `puna prepare` does, as three jobs that keep what it keeps, whatever the number of tasks:

first    any number of tasks: read, and drop what is broken, unsafe, poor or examined; leave digests and signatures
second   one task: find copies and near copies of earlier documents
third    any number of tasks: write what stays

Each step also stands alone, between datatrove's own. Near copies are found by our MinHash (`near`), not datatrove's: a
result then does not depend on where it was made, and no tokenizer for words is downloaded. The price is that one task
compares; who has more documents than one task can sort takes datatrove's `MinhashDedupSignature` and the stages after
it instead of `Sign`, `Compare` and `Distinct`. All folders must be seen by all machines.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from puna.errors import ConfigError, DeviceError
from puna.train.prepare import overlap, quality, safety
from puna.train.prepare.documents import find, read
from puna.train.prepare.language import language
from puna.train.prepare.run import Settings, check, find_copies, find_repeats, first_numbers, leave
from puna.train.prepare.words import Words, plain, words

try:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.readers.jsonl import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
except ImportError as error:
    raise DeviceError(f"preparing at scale needs datatrove ({error}): pip install 'puna[datatrove]'") from error

PLACE = "_puna_place"
"""The field in which a document carries its task and its number there, from `Sign` to `Distinct`."""


def pipelines(settings: Settings) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns the three pipelines; each is for an executor of its own that depends on the one before.

    `Settings.n_workers` does not count here. `out` is to be a new folder. Raises ConfigError for settings that cannot
    be.
    """
    check(settings)
    work, kept = settings.out / "work", str(settings.out / "work" / "kept")
    first = [
        Read(settings.inputs),
        *([Safe(settings.lists, settings.out / "quarantine")] if settings.lists else []),
        Language(settings.languages),
        Quality(settings.min_words),
        *([Overlap(settings.against)] if settings.against else []),
        Sign(work),
        JsonlWriter(kept),
    ]
    third = [JsonlReader(kept, add_file_path=False), Distinct(work), JsonlWriter(str(settings.out), adapter=_line)]
    return first, [Compare(work, settings.memory_mb)], third


class Read(PipelineStep):
    """The documents of files and folders, as `documents` reads them. A task has the next files in order."""

    type, name = "READER", "puna read"

    def __init__(self, inputs: Iterable[Path]) -> None:
        super().__init__()
        self.inputs = tuple(inputs)

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from data or ()
        sources = find(self.inputs)
        for source in sources[len(sources) * rank // world_size : len(sources) * (rank + 1) // world_size]:
            for each in read(source.path):
                if each.text is None:
                    self.stat_update(f"dropped_{each.fault}")
                else:
                    fields = {"source": source.name, **each.record}
                    yield Document(text=each.text, id=f"{source.path}:{each.line}", metadata=fields)


class Safe(PipelineStep):
    """Drops what is on the operator's lists (`safety`). `quarantine`: folder for id and list of each, never a text."""

    type, name = "FILTER", "puna safety"

    def __init__(self, lists: Path, quarantine: Path) -> None:
        super().__init__()
        self.lists, self.quarantine = lists, quarantine

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.quarantine.mkdir(parents=True, exist_ok=True)
        with (self.quarantine / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as file:
            for document in data:
                found = _seen(document.text).words
                name = safety.finding(_lists(self.lists), document.text, document.metadata, found.hashes)
                if name:
                    self.stat_update("dropped_safety")
                    file.write(json.dumps({"id": document.id, "list": name}) + "\n")
                else:
                    yield document


class Language(BaseFilter):
    """Writes the field `language`, and drops what is in none of `languages`, if there are any (`language`)."""

    name = "puna language"

    def __init__(self, languages: tuple[str, ...] = (), exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.languages = languages

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        tag = _seen(doc.text).language
        doc.metadata.setdefault("language", tag)
        return not self.languages or tag in self.languages or (False, "language")


class Quality(BaseFilter):
    """Drops what breaks a rule of `quality`; the rule is the reason."""

    name = "puna quality"

    def __init__(self, min_words: int = quality.MIN_WORDS, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.min_words = min_words

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        seen = _seen(doc.text)
        fault = quality.fault(doc.text, seen.words, seen.language, self.min_words)
        return (False, fault) if fault else True


class Overlap(BaseFilter):
    """Drops what holds passages of the evaluation sets in `against`, files or folders (`overlap`)."""

    name = "puna overlap"

    def __init__(self, against: Iterable[Path], exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.against = tuple(against)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return (False, "overlap") if overlap.holds(_exams(self.against), _seen(doc.text).words) else True


class Sign(PipelineStep):
    """Leaves in `work` what `Compare` needs of each document, and passes the document on with its place."""

    type, name = "DEDUP", "puna sign"

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        done = self.work / "scan" / f"{rank:05d}"
        folder = done.with_suffix(".partial")
        for old in (done, folder):
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "tasks").write_text(str(world_size))
        with (
            (folder / "verdicts").open("wb") as verdicts,
            (folder / "digests").open("wb") as digests,
            (folder / "signatures").open("wb") as signatures,
        ):
            for number, document in enumerate(data):
                leave(number, _seen(document.text).words, digests, signatures)
                verdicts.write(bytes(2))
                document.metadata[PLACE] = [rank, number]
                yield document
        folder.rename(done)


class Compare(PipelineStep):
    """Finds in what tasks of `Sign` left whatever equals or resembles an earlier document (`exact`, `near`)."""

    type, name = "DEDUP", "puna compare"

    def __init__(self, work: Path, memory_mb: int = 256) -> None:
        super().__init__()
        self.work, self.memory_mb = work, memory_mb

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if world_size > 1:
            raise ConfigError(f"{self.name}: {world_size} tasks cannot compare one corpus; give it tasks=1")
        starts = first_numbers(self.work, _n_tasks(self.work))
        for name in ("exact", "near"):
            (self.work / name).unlink(missing_ok=True)
        find_copies(self.work, starts, self.memory_mb * 2**20, print)
        find_repeats(self.work, starts, self.memory_mb * 2**20, print)


class Distinct(BaseFilter):
    """Drops what `Compare` found in `work`, whichever task now has the document."""

    name = "puna distinct"

    def __init__(self, work: Path, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.work = work

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        rank, number = doc.metadata.pop(PLACE)
        starts, flags = _flags(self.work)
        found = next((name for name, each in flags.items() if each[starts[rank] + number]), None)
        return (False, found) if found else True


class _Seen(NamedTuple):
    words: Words
    language: str


@lru_cache(maxsize=1)
def _seen(text: str) -> _Seen:
    """Returns what several steps ask of a text; a document passes them all before the next one comes."""
    normal = plain(text)
    found = words(normal)
    return _Seen(found, language(normal, found.hashes))


@cache
def _lists(folder: Path) -> safety.Lists:
    return safety.read_lists(folder)


@cache
def _exams(against: tuple[Path, ...]) -> overlap.Exams:
    return overlap.read_exams(list(against))


@lru_cache(maxsize=1)
def _flags(work: Path) -> tuple[list[int], dict[str, Any]]:
    """Returns the first number of each task, and what is a copy or near copy: bool [documents], read where asked."""
    flags = {name: np.memmap(work / name, np.bool_, mode="r") for name in ("exact", "near")}
    return first_numbers(work, _n_tasks(work)).tolist(), flags


def _n_tasks(work: Path) -> int:
    """Returns how many tasks signed. Raises ConfigError where some are missing, or are of another run."""
    said = [int(path.read_text()) for path in sorted((work / "scan").glob("?????/tasks"))]
    if set(said) != {len(said)}:
        wanted = sorted(set(said))
        raise ConfigError(f"{work}: {len(said)} tasks have signed, of {wanted}; run the first pipeline again")
    return len(said)


def _line(writer: Any, document: Document) -> dict[str, Any]:
    """Returns the line of the result, as `puna prepare` writes it."""
    return {"text": document.text, **document.metadata}
