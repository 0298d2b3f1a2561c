"""The folder of a run: what was asked, answered and judged, a line an item, so that a run that ended early goes on.

    run.json      who answered; answers of another model are refused
    TASK.jsonl    an item a line, in the order in which they were ready; `--responses` reads it too

A line is written in one piece when its item has been judged. One that a killed process left torn is cut off; nothing
that was finished is asked again. An item that was asked otherwise (another text, picture, length, seed) is refused.
Not here: what is asked and what it is worth.
"""

import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from PIL import Image

from puna.errors import ConfigError
from puna.eval.ask import Question, Reply
from puna.eval.task import Item, Judged, Score, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One item's record. `asked` names the question (`fingerprint`); `refusal` says why nothing was answered."""

    id: str
    asked: str
    response: list[str]
    value: float | None
    answer: str | None
    reason: str
    group: str = ""
    cluster: str = ""
    refusal: str = ""
    details: list[Mapping[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, judged: Judged, asked: str, replies: tuple[Reply, ...]) -> "Line":
        return cls(
            id=judged.item.id,
            asked=asked,
            response=list(judged.responses),
            value=judged.score.value,
            answer=judged.score.answer,
            reason=judged.score.reason,
            group=judged.item.group,
            cluster=judged.item.cluster,
            refusal=next((reply.refusal for reply in replies if reply.refusal), ""),
            details=[dict(reply.details) for reply in replies],
        )

    def judged(self, item: Item) -> Judged:
        """Returns what the line says of its item."""
        score = Score(value=self.value, answer=self.answer, reason=self.reason)
        return Judged(item=item, responses=tuple(self.response), score=score, details=tuple(self.details))


class Folder:
    """A run's folder, held by this process alone until `close`.

    Raises ConfigError when another process holds it, or when it is the run of another model: then the error names what
    differs. `note` is told of repairs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = (path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--out {path}: another run writes there; wait for it, or give another folder") from error
        self._require(identity)

    def close(self) -> None:
        """Lets go of the folder."""
        self._lock.close()

    def _require(self, identity: Mapping[str, Any]) -> None:
        """Notes who answers, or checks that it is who answered before."""
        file, plain = self.path / "run.json", json.loads(json.dumps(identity))
        if not file.exists():
            _write_whole(file, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            known = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"--out {file}: is not JSON ({error}); give another folder") from error
        for name in sorted({*known, *plain}):
            if known.get(name) != plain.get(name):
                raise ConfigError(
                    f"--out {self.path}: is a run with {name} {known.get(name)!r}, and this one has "
                    f"{plain.get(name)!r}; give another folder"
                )

    def lines(self, task: str) -> "Lines":
        """Returns the records of a task, to be read and added to."""
        return Lines(self.path / f"{task}.jsonl")

    def write(self, name: str, text: str) -> Path:
        """Writes a file of the folder, whole or not at all, and returns its path."""
        _write_whole(self.path / name, text)
        return self.path / name


class Lines:
    """The records of one task. `repaired` says how many bytes of a torn last line were cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repaired = _cut_torn_line(path)
        self.known = read_records(path) if path.exists() else {}
        self._file: IO[bytes] | None = None

    def find(self, item: Item, asked: str) -> Line | None:
        """Returns an item's record, None where it has none. Raises ConfigError where it was asked otherwise."""
        line = self.known.get(item.id)
        if line is not None and line.asked != asked:
            raise ConfigError(
                f"{self.path}: item {item.id!r} was asked otherwise there: task, data or a setting has changed; "
                "give another --out, or remove that file"
            )
        return line

    def add(self, line: Line) -> None:
        """Appends a record, in one write, so that a process that dies leaves at most one torn line."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        plain = {name: getattr(line, name) for name in Line.__dataclass_fields__}
        self._file.write((json.dumps(plain, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        self.known[line.id] = line

    def close(self) -> None:
        """Ends writing."""
        if self._file is not None:
            self._file.close()


def read_records(path: Path) -> dict[str, Line]:
    """Returns the records of a task's file by item. Raises ConfigError for a line that is none, or an item twice."""
    found: dict[str, Line] = {}
    for number, row in enumerate(read_lines(path), start=1):
        try:
            line = Line(**row)
        except TypeError as error:
            raise ConfigError(f"{path}, line {number}: is no record of an item ({error}); remove the file") from error
        if line.id in found:
            raise ConfigError(f"{path}, line {number}: item {line.id!r} is there twice; remove one of the lines")
        found[line.id] = line
    return found


def fingerprint(question: Question) -> str:
    """Returns a short name of all that a question asks: texts, the content of pictures, lengths, temperature, seed."""
    digest = hashlib.sha256()
    _feed(digest, type(question.prompt).__name__)
    for name in question.prompt.__dataclass_fields__:
        if (value := getattr(question.prompt, name)) or name != "tools":  # without tools as when there were none
            _feed(digest, value)
    _feed(digest, [question.n, question.max_new_tokens, question.temperature, question.seed])
    return digest.hexdigest()[:16]


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    """Adds a value to a digest so that different values differ: each with its kind and length before it."""
    match value:
        case Path():
            data = b"picture" + (value.read_bytes() if value.is_file() else str(value.name).encode())
        case bytes():
            data = b"picture" + value
        case Image.Image():
            data = b"pixels" + repr((value.mode, value.size)).encode() + value.tobytes()
        case Mapping():
            for key in value:
                _feed(digest, key)
                _feed(digest, value[key])
            data = f"mapping {len(value)}".encode()
        case list() | tuple():
            for each in value:
                _feed(digest, each)
            data = f"list {len(value)}".encode()
        case _:
            data = json.dumps(value).encode()
    digest.update(f"{len(data)}:".encode())
    digest.update(data)


def _cut_torn_line(path: Path) -> int:
    """Cuts off what stands behind the last line end of a file. Returns how many bytes that was."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
    return len(data) - whole


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
