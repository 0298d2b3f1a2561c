"""The documents of a corpus, one at a time and in a fixed order: JSON lines or plain text, also compressed.

A file of JSON lines (.jsonl, .ndjson) has a document a line, its text in `text` or `content`; other fields go along.
A file of plain text (.txt, .md) is one document, or where it is long several, cut at line ends. Either may be .gz. A
document never takes more memory than `LONGEST_BYTES`, whatever the file.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from puna.errors import ConfigError

LONGEST_BYTES = 4 * 2**20
"""Of a line or piece; longer ones are not read."""
_LINES, _PLAIN = (".jsonl", ".ndjson"), (".txt", ".md")


class Source(NamedTuple):
    """A file of the corpus. `name` is what the report counts it under: the folder or file just below what was named."""

    path: Path
    name: str


class Document(NamedTuple):
    """A document, or what stands in its place.

    line   its line in the file, or the first of its lines, from 1
    text   None where there is none, see `fault`
    record the fields beside the text
    fault  "", "broken" (no UTF-8, no JSON object, no text) or "too_long"
    """

    line: int
    text: str | None
    record: dict[str, Any]
    fault: str


def find(inputs: Sequence[Path]) -> tuple[Source, ...]:
    """Returns the files of a corpus in order. Raises ConfigError where a name leads nowhere or to nothing readable."""
    found: list[Source] = []
    for named in inputs:
        if not named.exists():
            raise ConfigError(f"{named}: does not exist; name files or folders of text")
        if named.is_dir():
            paths = sorted(path for path in named.rglob("*") if path.is_file() and _kind(path))
            sources = [Source(path, path.relative_to(named).parts[0].split(".")[0]) for path in paths]
        else:
            sources = [Source(named, named.name.split(".")[0])] if _kind(named) else []
        if not sources:
            kinds = " ".join(_LINES + _PLAIN)
            raise ConfigError(f"{named}: holds nothing to read; puna reads {kinds}, and the same with .gz")
        found += sources
    return tuple(found)


def read(path: Path) -> Iterator[Document]:
    """Yields the documents of a file."""
    with _open(path) as file:
        yield from _read_lines(file) if _kind(path) in _LINES else _read_plain(file)


def _kind(path: Path) -> str:
    """Returns the suffix that counts, or "" for a file of no kind that is read here."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in _LINES + _PLAIN else ""


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_lines(file: IO[bytes]) -> Iterator[Document]:
    number = 0
    while line := file.readline(LONGEST_BYTES):
        number += 1
        if len(line) == LONGEST_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Document(number, None, {}, "too_long")
        elif line.strip():
            yield _parsed(number, line)


def _parsed(number: int, line: bytes) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Document(number, None, {}, "broken")
    name = next((name for name in ("text", "content") if isinstance(record, dict) and name in record), "")
    if not name or not isinstance(record[name], str):
        return Document(number, None, {}, "broken")
    return Document(number, _paired(record.pop(name)), record, "")


def _paired(text: str) -> str:
    """Returns `text` with halves of surrogate pairs, which JSON can spell and UTF-8 cannot, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _read_plain(file: IO[bytes]) -> Iterator[Document]:
    first, number, size, lines = 1, 0, 0, list[bytes]()
    while line := file.readline(LONGEST_BYTES // 4):
        if size + len(line) > LONGEST_BYTES // 4 and lines:
            yield _decoded(first, lines)
            first, size, lines = number + 1, 0, []
        lines.append(line)
        size += len(line)
        number += line.endswith(b"\n")
    if lines:
        yield _decoded(first, lines)


def _decoded(first: int, lines: list[bytes]) -> Document:
    try:
        return Document(first, b"".join(lines).decode("utf-8-sig"), {}, "")
    except UnicodeDecodeError:
        return Document(first, None, {}, "broken")
