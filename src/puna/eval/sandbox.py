"""Runs a program that nobody has read, and says how it ended: one process, confined, watched, thrown away.

In: Python source, its standard input, limits. Out: an `Outcome`. The program gets the standard library and nothing
else: no network, no file written, no file read outside the library, no further process (threads are allowed), no
signal to others, no environment; bounded processor time, wall time, memory, open files and output. `confine` holds
what is enforced inside; this file starts it, watches time and output, and kills.

What this cannot know: a program that searches its own interpreter can find the token that marks a run to the end.
Where that matters compare its output, or `value`, with answers that never enter the process.
"""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from puna.errors import DeviceError

Ended = Literal["finished", "raised", "exited", "time", "cpu", "memory", "output", "crashed"]
"""How a program ended: to its end; by an exception; by leaving early; stopped by a limit; by a signal."""

CONFINE = Path(__file__).with_name("confine.py")
MAX_REPORT_BYTES = 64 * 2**20  # of `value`, in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. `seconds` is wall time, watched from outside; the others are the kernel's."""

    seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 2**30
    output_bytes: int = 2**20
    n_files: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended and what came out.

    `attempts` names what the program tried and was refused ("network", "process", "signal", "file write",
    "file read", "limits") or only named ("native code", "environment"). `value` is the asked-for value, read back from
    JSON. `layers` says which protections were in force; without "landlock" reads are refused by the interpreter only.
    """

    ended: Ended
    detail: str
    stdout: str
    stderr: str
    value: Any
    attempts: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return self.ended == "finished"

    def describe(self) -> str:
        """Returns one line: how it ended, why, and what it attempted."""
        attempts = f"; attempted: {', '.join(self.attempts)}" if self.attempts else ""
        return f"{self.ended}{': ' if self.detail else ''}{self.detail}{attempts}"


def run(program: str, *, stdin: str = "", value: str | None = None, limits: Limits | None = None) -> Outcome:
    """Runs `program` as `__main__` and returns its outcome; then evaluates the expression `value`, if one is given.

    Raises DeviceError where this machine cannot confine a process; a program never runs unconfined.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    job = {"program": program, "value": value, "token": token, "memory_bytes": limits.memory_bytes}
    job |= {"cpu_seconds": limits.cpu_seconds, "n_files": limits.n_files}
    with _memory_file(json.dumps(job)) as job_file, _memory_file(stdin) as stdin_file:
        reads, writes = os.pipe()
        with os.fdopen(reads, "rb") as report:
            command = [
                sys.executable,
                "-I",
                "-S",
                "-B",
                "-X",
                "utf8",
                str(CONFINE),
                str(job_file.fileno()),
                str(writes),
            ]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin_file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(job_file.fileno(), writes),
                    start_new_session=True,
                    env={},
                    cwd="/",
                )
            finally:
                os.close(writes)
            with process:
                texts, stopped = _watch(process, report, limits)
    return _outcome(texts, stopped, process.returncode, token)


def _watch(
    process: subprocess.Popen[bytes], report: IO[bytes], limits: Limits
) -> tuple[tuple[bytes, bytes, bytes], Ended | None]:
    """Reads standard output, errors and the report until the process ends or is killed for a limit, which is named."""
    assert process.stdout and process.stderr
    texts = {process.stdout: bytearray(), process.stderr: bytearray(), report: bytearray()}
    caps = {process.stdout: limits.output_bytes, process.stderr: limits.output_bytes, report: MAX_REPORT_BYTES}
    deadline = time.monotonic() + limits.seconds
    stopped: Ended | None = None
    with selectors.DefaultSelector() as ready:
        for each in texts:
            ready.register(each, selectors.EVENT_READ, each)
        while ready.get_map() and stopped is None:
            events = ready.select(max(0.0, deadline - time.monotonic()))
            for key, _ in events:
                stream: IO[bytes] = key.data
                piece = os.read(key.fd, 2**16)
                if not piece:
                    ready.unregister(stream)
                texts[stream] += piece
                if len(texts[stream]) > caps[stream]:
                    stopped = "output"
            if time.monotonic() >= deadline:
                stopped = "time"
    if stopped is None:  # everything is closed: the end is near, but a program may close its streams and go on
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            stopped = "time"
    if stopped is not None:
        process.kill()
    process.wait()
    return (bytes(texts[process.stdout]), bytes(texts[process.stderr]), bytes(texts[report])), stopped


def _outcome(texts: tuple[bytes, bytes, bytes], stopped: Ended | None, code: int, token: str) -> Outcome:
    stdout, stderr, report = texts
    attempts: list[str] = []
    layers: tuple[str, ...] = ()
    end: dict[str, Any] = {}
    for line in _report_lines(report):
        if "setup" in line:
            raise DeviceError(f"sandbox: {line['setup']}; evaluate programs on a machine that can confine them")
        if "layers" in line and not layers:
            layers = tuple(line["layers"])
        if "attempt" in line:
            attempts.append(str(line["attempt"]))
        if line.get("token") == token:
            end = line
    if not layers and stopped is None:
        raise DeviceError(f"sandbox: the confining process did not start: {stderr.decode('utf-8', 'replace')[-300:]}")
    ended, detail, value = _end(stopped, code, end)
    return Outcome(
        ended=ended,
        detail=detail,
        stdout=stdout.decode("utf-8", "replace"),
        stderr=stderr.decode("utf-8", "replace"),
        value=value,
        attempts=tuple(dict.fromkeys(attempts)),
        layers=layers,
    )


def _end(stopped: Ended | None, code: int, end: dict[str, Any]) -> tuple[Ended, str, Any]:
    """Returns how the program ended, why, and its value, from the three witnesses."""
    if stopped is not None:
        return stopped, "killed at the limit", None
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "cpu", "killed at the limit of processor time", None
    if code < 0:
        return "crashed", signal.Signals(-code).name, None
    if not end:
        return "exited", f"left with status {code} before its end", None
    value = end.get("value")
    try:
        return end["ended"], str(end["detail"])[:400], None if value is None else json.loads(value)
    except ValueError as error:
        return "raised", f"value: {error}", None


def _report_lines(report: bytes) -> Iterator[dict[str, Any]]:
    """Yields the report's documents; whatever else a program wrote there is no document of ours."""
    for text in report.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line


@contextmanager
def _memory_file(text: str) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        yield file
