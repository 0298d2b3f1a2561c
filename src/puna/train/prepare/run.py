"""The stages of a preparation, from raw files to documents worth learning from. Each can be stopped and goes on.

scan    every file once: what is broken, unsafe, poor or examined goes; others leave a digest and a signature
exact   whatever equals an earlier document goes
near    whatever resembles an earlier document goes
write   every file once more: what stays is written, a file for each file, in the order read; all is counted

What a stage leaves is a file that appears under its name when it is whole. The same settings give the same bytes,
whatever the number of workers and however often it was stopped. Memory holds a document, the passages of the evaluation
sets, the lists, and a part of what lies in files (`Settings.memory_mb`), for each worker.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna import __version__
from puna.errors import ConfigError
from puna.train.prepare import exact, near, overlap, quality, safety
from puna.train.prepare.documents import Document, Source, find, read
from puna.train.prepare.language import LANGUAGES, language
from puna.train.prepare.spill import Records, blocks
from puna.train.prepare.words import Words, plain, words

REASONS = ("kept", "broken", "too_long", "safety", "language", *quality.RULES, "overlap", "exact", "near")
"""What became of a document. The first that holds is the one that counts."""
REPORT, QUARANTINE = "report.json", "quarantine.jsonl"
_VERDICT = np.dtype([("reason", "u1"), ("language", "u1")])
_REGION = 2**20  # flags read and written at a time
_SAY_EVERY = 20_000  # documents

Say = Callable[[str], None]
_Tally = dict[str, dict[str, dict[str, list[int]]]]  # source -> language -> reason -> documents, bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to prepare, and how.

    inputs      files and folders, in this order
    out         folder for the result; it may hold an unfinished one of the same settings
    against     evaluation sets to keep out of the result (`overlap`)
    lists       folder of the child-safety lists (`safety`); None: no such filter, and the report says so
    languages   those to keep, of `language.LANGUAGES`; empty: all
    min_words   shortest document (`quality`)
    memory_mb   for what is sorted, a process; n_workers: processes that scan and write
    """

    inputs: tuple[Path, ...]
    out: Path
    against: tuple[Path, ...] = ()
    lists: Path | None = None
    languages: tuple[str, ...] = ()
    min_words: int = quality.MIN_WORDS
    memory_mb: int = 256
    n_workers: int = 1


def prepare(settings: Settings, say: Say) -> dict[str, Any]:
    """Runs what is left of the stages; `say` gets lines of progress. Returns the report, which is in the folder, too.

    Raises ConfigError for settings that cannot be, and where the folder holds something else.
    """
    check(settings)
    sources = find(settings.inputs)
    plan = _plan(settings, sources)
    report = settings.out / REPORT
    if report.is_file():
        _same_plan(json.loads(report.read_text("utf-8")).get("plan"), plan, settings.out)
        return dict(json.loads(report.read_text("utf-8")))
    work = _open_work(settings.out, plan)
    checks = _Checks(
        overlap.read_exams(list(settings.against)) if settings.against else None,
        safety.read_lists(settings.lists) if settings.lists else None,
        settings.languages,
        settings.min_words,
    )
    jobs = [(number, source, work) for number, source in enumerate(sources)]
    _each(partial(_scan, checks), jobs, settings.n_workers, say)
    starts = first_numbers(work, len(sources))
    find_copies(work, starts, settings.memory_mb * 2**20, say)
    find_repeats(work, starts, settings.memory_mb * 2**20, say)
    placed = [(*job, settings.out, int(start)) for job, start in zip(jobs, starts, strict=False)]
    _each(_write, placed, settings.n_workers, say)
    document = {"version": __version__, "plan": plan, **_filters(checks), **_counts(work, len(sources))}
    _write_quarantine(work, settings.out, sources)
    _write_whole(report, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(work)
    return document


class _Checks(NamedTuple):
    exams: overlap.Exams | None
    lists: safety.Lists | None
    languages: tuple[str, ...]
    min_words: int


# Plan -------------------------------------------------------------------------------------------------------------


def check(settings: Settings) -> None:
    """Raises ConfigError for settings that cannot be."""
    unknown = sorted(set(settings.languages) - set(LANGUAGES))
    if unknown:
        raise ConfigError(f"languages: {', '.join(unknown)} is unknown; take some of {', '.join(LANGUAGES)}")
    for name in ("min_words", "memory_mb", "n_workers"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}: {getattr(settings, name)} is too small; take 1 or more")


def _plan(settings: Settings, sources: Iterable[Source]) -> dict[str, Any]:
    """Returns what the result depends on, as JSON. How much memory and how many workers there are is not part of it."""
    asked = asdict(settings)
    for name in ("inputs", "out", "memory_mb", "n_workers"):
        del asked[name]
    extra = [*settings.against, *([settings.lists] if settings.lists else [])]
    beside = sorted(f for path in extra for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
    files = [*(source.path for source in sources), *beside]
    stamps = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    plan: dict[str, Any] = json.loads(json.dumps({**asked, "files": stamps}, default=str))
    return plan


def _same_plan(found: Any, plan: dict[str, Any], out: Path) -> None:
    if found != plan:
        differs = sorted(key for key in plan if not isinstance(found, dict) or found.get(key) != plan[key])
        raise ConfigError(f"{out}: holds another preparation ({', '.join(differs)} differ); name another folder")


def _open_work(out: Path, plan: dict[str, Any]) -> Path:
    """Returns the folder for what stages leave, new or as it was left."""
    work = out / "work"
    if (work / "plan.json").is_file():
        _same_plan(json.loads((work / "plan.json").read_text("utf-8")), plan, out)
        return work
    if out.exists() and any(path != work for path in out.iterdir()):
        raise ConfigError(f"{out}: is not empty, and holds no preparation; name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    _write_whole(work / "plan.json", json.dumps(plan))
    return work


def _write_whole(path: Path, text: str) -> None:
    partial_path = path.with_name(f"{path.name}.partial")
    partial_path.write_text(text, "utf-8")
    partial_path.replace(path)


def _each(function: Callable[..., str], jobs: list[Any], n_workers: int, say: Say) -> None:
    """Does all jobs, here or in processes of their own. Each returns a line to say, or nothing."""
    if n_workers == 1 or len(jobs) == 1:
        for job in jobs:
            _say_some(say, function(job, say))
        return
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(function, jobs, [_say_nothing] * len(jobs)):
            _say_some(say, line)


def _say_some(say: Say, line: str) -> None:
    if line:
        say(line)


def _say_nothing(line: str) -> None:
    """For workers: whoever waits for them says what they did."""


# Scan -------------------------------------------------------------------------------------------------------------


def _scan(checks: _Checks, job: tuple[int, Source, Path], say: Say) -> str:
    number, source, work = job
    done = work / "scan" / f"{number:05d}"
    if done.is_dir():
        return ""
    folder = done.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    n = 0
    with (
        (folder / "verdicts").open("wb") as verdicts,
        (folder / "digests").open("wb") as digests,
        (folder / "signatures").open("wb") as signatures,
        (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine,
    ):
        for n, document in enumerate(read(source.path), 1):
            reason, tag = _judge(checks, n - 1, document, digests, signatures, quarantine)
            verdicts.write(bytes((REASONS.index(reason), LANGUAGES.index(tag))))
            if n % _SAY_EVERY == 0:
                say(f"scan {source.path.name}: {n:,} documents")
    folder.rename(done)
    return f"scan {source.path.name}: {n:,} documents, done"


def _judge(
    checks: _Checks, number: int, document: Document, digests: IO[bytes], signatures: IO[bytes], quarantine: IO[str]
) -> tuple[str, str]:
    """Returns what a document alone says about itself, and its language; writes what is needed to compare it."""
    if document.text is None:
        return document.fault, "other"
    text = plain(document.text)
    found = words(text)
    tag = language(text, found.hashes)
    if checks.lists and (name := safety.finding(checks.lists, document.text, document.record, found.hashes)):
        quarantine.write(json.dumps({"line": document.line, "list": name}) + "\n")
        return "safety", tag
    if checks.languages and tag not in checks.languages:
        return "language", tag
    if fault := quality.fault(document.text, found, tag, checks.min_words):
        return fault, tag
    if checks.exams and overlap.holds(checks.exams, found):
        return "overlap", tag
    leave(number, found, digests, signatures)
    return "kept", tag


def leave(number: int, found: Words, digests: IO[bytes], signatures: IO[bytes]) -> None:
    """Writes what is needed to compare a document with others, under its number in the file or task."""
    digests.write(np.array((number, *exact.digest(found.hashes)), exact.DIGEST).tobytes())
    if (minima := near.signature(found)) is not None:
        signatures.write(np.int64(number).tobytes() + minima.tobytes())


# Compare ----------------------------------------------------------------------------------------------------------


def first_numbers(work: Path, n_sources: int) -> NDArray[np.int64]:
    """Returns the number of the first document of each source, and of one past the last: int64 [sources + 1]."""
    sizes = [(work / "scan" / f"{k:05d}" / "verdicts").stat().st_size // _VERDICT.itemsize for k in range(n_sources)]
    return np.cumsum([0, *sizes])


def _numbered(work: Path, name: str, kind: np.dtype[Any], starts: NDArray[np.int64]) -> Iterator[Records]:
    """Yields the records that scans left, with the numbers that documents have in the whole corpus."""
    for k, start in enumerate(starts[:-1]):
        for block in blocks(work / "scan" / f"{k:05d}" / name, kind):
            records = block.copy()
            records["document"] += start
            yield records


def find_copies(work: Path, starts: NDArray[np.int64], memory_bytes: int, say: Say) -> None:
    """Leaves the file `exact` in `work`: a byte a document, 1 where it equals an earlier one."""
    if (work / "exact").is_file():
        return
    n = int(starts[-1])
    digests = _numbered(work, "digests", exact.DIGEST, starts)
    found = _flag(work / "exact", n, exact.copies(digests, n, work / "exact.parts", memory_bytes))
    say(f"exact: {found:,} of {n:,} documents equal an earlier one")


def find_repeats(work: Path, starts: NDArray[np.int64], memory_bytes: int, say: Say) -> None:
    """Leaves the file `near` in `work`: a byte a document, 1 where it resembles an earlier one."""
    if (work / "near").is_file():
        return
    signatures = work / "signatures"
    with signatures.open("wb") as file, (work / "exact").open("rb") as flags:
        for records in _numbered(work, "signatures", near.SIGNATURE, starts):
            first = int(records["document"][0])
            flags.seek(first)
            copies = np.frombuffer(flags.read(int(records["document"][-1]) - first + 1), np.bool_)
            file.write(records[~copies[records["document"] - first]].tobytes())
    found = _flag(work / "near", int(starts[-1]), near.repeats(signatures, work / "near.parts", memory_bytes))
    signatures.unlink()
    say(f"near: {found:,} documents resemble an earlier one")


def _flag(path: Path, n: int, numbers: Iterable[NDArray[np.int64]]) -> int:
    """Writes a file of `n` bytes, 1 where a number was yielded, and returns how many are; parts need not fit memory."""
    found = 0
    unfinished = path.with_name(f"{path.name}.partial")
    with unfinished.open("w+b") as file:
        file.truncate(n)
        for some in numbers:
            regions = some // _REGION
            for region in np.unique(regions).tolist():
                file.seek(region * _REGION)
                flags = np.frombuffer(bytearray(file.read(_REGION)), np.uint8)
                here = np.unique(some[regions == region]) - region * _REGION
                found += int((flags[here] == 0).sum())
                flags[here] = 1
                file.seek(region * _REGION)
                file.write(flags.tobytes())
    unfinished.replace(path)
    with suppress(FileNotFoundError):
        shutil.rmtree(path.with_name(f"{path.name}.parts"))
    return found


# Write ------------------------------------------------------------------------------------------------------------


def _write(job: tuple[int, Source, Path, Path, int], say: Say) -> str:
    number, source, work, out, start = job
    counted = work / "counts" / f"{number:05d}.json"
    if counted.is_file():
        return ""
    counted.parent.mkdir(exist_ok=True)
    counts: dict[str, dict[str, list[int]]] = {}
    written = out / f"{number:05d}.jsonl"
    unfinished = written.with_name(f"{written.name}.partial")
    verdicts = _verdicts(work, number, start)
    with unfinished.open("w", encoding="utf-8") as file:
        try:
            for document, (reason, tag) in zip(read(source.path), verdicts, strict=True):
                tally = counts.setdefault(tag, {}).setdefault(reason, [0, 0])
                tally[0] += 1
                tally[1] += len((document.text or "").encode())
                if reason == "kept":
                    line = {"text": document.text, "language": tag, "source": source.name, **document.record}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except ValueError as error:
            raise ConfigError(f"{source.path}: changed while it was read; start again in a new folder") from error
    unfinished.replace(written)
    _write_whole(counted, json.dumps({source.name: counts}))
    kept = sum(each.get("kept", [0])[0] for each in counts.values())
    return f"write {source.path.name}: {kept:,} documents stay"


def _verdicts(work: Path, number: int, start: int) -> Iterator[tuple[str, str]]:
    """Yields what became of each document of a source, and its language."""
    with (work / "exact").open("rb") as copies, (work / "near").open("rb") as repeats:
        copies.seek(start)
        repeats.seek(start)
        for block in blocks(work / "scan" / f"{number:05d}" / "verdicts", _VERDICT):
            is_copy, repeated = (np.frombuffer(file.read(len(block)), np.bool_) for file in (copies, repeats))
            reasons = np.where(repeated, REASONS.index("near"), block["reason"])
            reasons = np.where(is_copy, REASONS.index("exact"), reasons)
            for reason, tag in zip(reasons.tolist(), block["language"].tolist(), strict=True):
                yield REASONS[reason], LANGUAGES[tag]


def _counts(work: Path, n_sources: int) -> dict[str, Any]:
    """Returns the counts of the report: documents and bytes of text by what became of them, in all and by kind."""
    total: dict[str, list[int]] = {}
    by_source: dict[str, dict[str, list[int]]] = {}
    by_language: dict[str, dict[str, list[int]]] = {}
    for k in range(n_sources):
        tally: _Tally = json.loads((work / "counts" / f"{k:05d}.json").read_text("utf-8"))
        for source, languages in tally.items():
            for tag, reasons in languages.items():
                for reason, (n, size) in reasons.items():
                    for where in (total, by_source.setdefault(source, {}), by_language.setdefault(tag, {})):
                        before = where.setdefault(reason, [0, 0])
                        where[reason] = [before[0] + n, before[1] + size]
    return {
        "all": _in_order(total),
        "sources": {source: _in_order(each) for source, each in by_source.items()},
        "languages": {tag: _in_order(by_language[tag]) for tag in LANGUAGES if tag in by_language},
    }


def _in_order(reasons: dict[str, list[int]]) -> dict[str, dict[str, int]]:
    return {name: dict(zip(("documents", "bytes"), reasons[name], strict=True)) for name in REASONS if name in reasons}


def _filters(checks: _Checks) -> dict[str, Any]:
    """Returns what the report says about filters that need something from outside."""
    exams, lists = checks.exams, checks.lists
    return {
        "child_safety": "applied" if lists else "not applied: no lists were given",
        "against": {"records": exams.n_records, "too_short_to_find": exams.n_too_short} if exams else "nothing",
    }


def _write_quarantine(work: Path, out: Path, sources: Iterable[Source]) -> None:
    """Writes where findings of the child-safety filter are: file, line, list; no text and no entry."""
    partial_path = out / f"{QUARANTINE}.partial"
    with partial_path.open("w", encoding="utf-8") as file:
        for number, source in enumerate(sources):
            with (work / "scan" / f"{number:05d}" / QUARANTINE).open(encoding="utf-8") as lines:
                for line in lines:
                    file.write(json.dumps({"file": str(source.path), **json.loads(line)}) + "\n")
    partial_path.replace(out / QUARANTINE)
