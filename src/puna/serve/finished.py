"""Lines that are finished, on disk in the order of their questions, whatever the order in which they were finished.

In: a number, an identity and a line each. Out: a file that holds the lines in order. A line whose turn has not come
waits in a second file, named like the first with ".early", which goes once nothing waits. A process may be killed at
any time: what is whole in either file counts as finished, and a torn last line does not.
Not here: what the lines say.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

from puna.errors import ConfigError

_PIECE_BYTES = 2**20


class _Place(NamedTuple):
    """Where an early line lies in its file."""

    start: int
    n_bytes: int


class Finished:
    """The lines of one run and of those before it. `n` are in order; `n_early` wait for a line before them.

    Raises ConfigError when another process writes the same file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._early_path = path.with_name(path.name + ".early")
        self._out = _open(path)
        self._early_file = _open(self._early_path)
        self.n = _mend(self._out)
        self._early = self._read_early()
        self._settle()
        self._n_before, self._early_before = self.n, frozenset(self._early)

    @property
    def n_early(self) -> int:
        return len(self._early)

    @property
    def n_before(self) -> int:
        """Lines that earlier runs finished."""
        return self._n_before + len(self._early_before)

    def check(self, identities: Iterable[bytes]) -> None:
        """Raises ConfigError unless the finished lines contain the identities of the questions of their numbers."""
        after = max(self._early_before, default=self._n_before - 1) + 1
        identities = iter(identities)
        with self._path.open("rb") as lines:
            for number in range(after):
                identity = next(identities, None)
                line = next(lines, b"") if number < self._n_before else None
                if line is None and number in self._early_before:
                    line = self._read(self._early[number])
                if identity is None or (line is not None and identity not in line):
                    raise ConfigError(
                        f"{self._path}: line {number + 1} answers no line {number + 1} of this input for this model; "
                        "name another output, or remove it to begin anew"
                    )

    def has(self, number: int) -> bool:
        """Says whether an earlier run finished line `number`."""
        return number < self._n_before or number in self._early_before

    def add(self, number: int, line: bytes) -> None:
        """Writes line `number`, which ends with a line feed, and those that waited for it."""
        if number == self.n:
            self._out.write(line)
            self.n += 1
            self._settle()
        else:
            head = b"%d " % number
            start = self._early_file.seek(0, os.SEEK_END)
            self._early_file.write(head + line)
            self._early_file.flush()
            self._early[number] = _Place(start + len(head), len(line))

    def close(self) -> None:
        """Leaves both files; the second one goes if nothing is in it."""
        self._out.close()
        self._early_file.close()
        if not self._early:
            self._early_path.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Moves lines whose turn has come."""
        while (place := self._early.pop(self.n, None)) is not None:
            self._out.write(self._read(place))
            self.n += 1
        self._out.flush()
        if not self._early:
            self._early_file.truncate(0)

    def _read(self, place: _Place) -> bytes:
        self._early_file.seek(place.start)
        return self._early_file.read(place.n_bytes)

    def _read_early(self) -> dict[int, _Place]:
        """Returns the places of the lines that wait, by number, without those whose turn came before a kill."""
        _mend(self._early_file)
        places, start = {}, 0
        self._early_file.seek(0)
        for entry in self._early_file:
            head, _, line = entry.partition(b" ")
            if int(head) >= self.n:
                places[int(head)] = _Place(start + len(head) + 1, len(line))
            start += len(entry)
        return places


def _open(path: Path) -> IO[bytes]:
    file = path.open("r+b" if path.exists() else "w+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{path}: another process writes it; wait for that one, or name another file") from error
    return file


def _mend(file: IO[bytes]) -> int:
    """Cuts off a last line without its end and returns how many lines are left; the file is at its end then."""
    n, end, at = 0, 0, 0
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        n += piece.count(b"\n")
        if (last := piece.rfind(b"\n")) >= 0:
            end = at + last + 1
        at += len(piece)
    file.seek(end)
    file.truncate()
    return n
