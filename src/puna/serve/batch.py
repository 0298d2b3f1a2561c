"""Files of requests: many answered at once, their answers in the order of the requests.

In: lines in the shape of OpenAI's batch files (custom_id, method, url, body) and whoever answers them: a desk in this
process, or a crew of them (`ray_batch`). Out: a line for each, in OpenAI's shape for results. What is wrong with a line
is said in its place; a run that ended early goes on where it was (`finished`). Memory holds the lines that are being
answered, never the file.
Not here: what requests mean and how they are answered (`desk`).

Source of the shapes: OpenAI's API reference, the request input object and the request output object of batches.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from puna.chat import Assistant
from puna.errors import ConfigError
from puna.serve.app import Settings
from puna.serve.convert import Limits
from puna.serve.desk import Desk, Reply
from puna.serve.finished import Finished
from puna.serve.screen import MakeScreen

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is an error of its own: it is not held."""

MAX_EARLY = 100_000
"""Answers that may wait on disk for a slow one before them."""

TRIES = 3
"""How often a line is asked whose answer is a fault of the server."""

_SECONDS_BETWEEN_LINES = 2.0  # of progress
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError)


class Item(NamedTuple):
    """One line of the input. `number` counts from 0, without blank lines; `line` is None where it was too long.

    `identity` follows from model, number and line, so an answer shows whose it is; `end` is where the line ends.
    """

    number: int
    line: bytes | None
    identity: str
    end: int


class Result(NamedTuple):
    """One line of the output, and what it adds to the counts."""

    line: bytes
    is_good: bool
    prompt_tokens: int
    completion_tokens: int


Answer = Callable[[Item], Awaitable[Result]]


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run did. `kept` lines were finished by earlier runs; all other counts are of this one.

    `repeated` counts lines that were asked again since a worker was lost.
    """

    lines: int = 0
    kept: int = 0
    answered: int = 0
    failed: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    custom_id: Any = None


class _Streamed(msgspec.Struct):
    stream: Any = None


class _Counted(msgspec.Struct):
    usage: Any = None


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    id: str
    custom_id: Any
    response: _Response | None = None
    error: _Error | None = None


def read(source: Path, model: str) -> Iterator[Item]:
    """Yields the lines of a file that are not blank, one after the other."""
    number, end = 0, 0
    with source.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            piece, end = line, end + len(line)
            while not piece.endswith(b"\n") and (piece := file.readline(MAX_LINE_BYTES)):
                end += len(piece)
            text = line.strip()
            if text:
                identity = hashlib.blake2b(b"%s\n%d\n%s" % (model.encode(), number, text), digest_size=12).hexdigest()
                yield Item(number, text if len(line) <= MAX_LINE_BYTES else None, identity, end)
                number += 1


async def run_here(
    source: Path,
    target: Path,
    assistant: Assistant,
    *,
    model: str,
    at_once: int,
    say: Callable[[str], None],
    screen: MakeScreen | None = None,
) -> Summary:
    """Does what `run` does, with an assistant in this process, behind what `screen` makes of its answers."""
    async with Desk(assistant, settings(model, at_once, screen, assistant.adapters)) as desk:
        return await run(source, target, lambda item: answer(desk, item), model=model, at_once=at_once, say=say)


def settings(model: str, at_once: int, screen: MakeScreen | None = None, adapters: tuple[str, ...] = ()) -> Settings:
    """Returns how a desk behaves that nobody else uses: there is room for whatever `at_once` lines ask for."""
    return Settings(model=model, adapters=adapters, max_open=at_once * Limits().max_choices, screen=screen)


async def answer(desk: Desk, item: Item) -> Result:
    """Returns the line that answers an item, whatever is wrong with it. What failed here is tried again."""
    if item.line is None:
        return refuse(item, "line_too_long", f"the line has more than {MAX_LINE_BYTES} bytes: split it")
    try:
        asked = msgspec.json.decode(item.line, type=_Asked)
    except (*_NOT_JSON, RecursionError) as error:
        return refuse(item, "invalid_line", f"{error}: give custom_id, method, url and body")
    problem = _problem(asked)
    if problem is not None:
        return refuse(item, *problem)
    for _ in range(TRIES):
        reply = await desk.post(asked.url, bytes(asked.body))
        if reply.status < 500:
            break
    return _response(item, asked.custom_id, reply)


def refuse(item: Item, code: str, message: str) -> Result:
    """Returns the line of an item that is not answered."""
    try:
        custom_id = msgspec.json.decode(item.line or b"{}", type=_Named).custom_id
    except _NOT_JSON:
        custom_id = None
    return Result(_encode(_Line(f"batch_req_{item.identity}", custom_id, error=_Error(code, message))), False, 0, 0)


async def run(
    source: Path,
    target: Path,
    ask: Answer,
    *,
    model: str,
    at_once: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Answers what is not finished, `at_once` lines at the same time; `say` is told now and then how far it is.

    Raises ConfigError when `target` holds answers to something else, and whatever `ask` raises, which ends the run.
    """
    if target.exists() and source.samefile(target):
        raise ConfigError(f"OUT is {target}, which is IN: name another file for the answers")
    size, finished = source.stat().st_size, Finished(target)
    counts, begin = Summary(kept=finished.n_before), clock()
    said, end, open_ = begin, 0, dict[asyncio.Future[Result], Item]()

    async def settle() -> None:
        nonlocal said
        done, _ = await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            item, result = open_.pop(each), each.result()
            finished.add(item.number, result.line)
            _count(counts, result)
        if clock() - said >= _SECONDS_BETWEEN_LINES:
            said = clock()
            open_bytes = sum(len(item.line or b"") for item in open_.values())
            say(_progress(counts, (end - open_bytes) / size, said - begin))

    try:
        finished.check(item.identity.encode() for item in read(source, model))
        for item in read(source, model):
            counts.lines += 1
            if not finished.has(item.number):
                while len(open_) >= at_once or finished.n_early >= MAX_EARLY:
                    await settle()
                open_[asyncio.ensure_future(ask(item))] = item
            end = item.end
        while open_:
            await settle()
    finally:
        for each in open_:
            each.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
        finished.close()
        counts.seconds = round(clock() - begin, 3)
    return counts


def _problem(asked: _Asked) -> tuple[str, str] | None:
    """Says why a line cannot be asked, if so. What is wrong with a body is the server's to say."""
    if asked.method != "POST":
        return "invalid_method", f"method is {asked.method[:20]!r}: a batch posts; give POST"
    if not asked.url.startswith("/v1/") or not asked.url.isascii():
        return "invalid_url", f"url is {asked.url[:200]!r}: give a path such as /v1/chat/completions"
    try:
        streamed = msgspec.json.decode(asked.body, type=_Streamed).stream
    except msgspec.DecodeError:  # no object, for one: the server finds the same, and says it
        return None
    return ("invalid_body", "stream is true: a batch gives whole answers; leave it out") if streamed else None


def _response(item: Item, custom_id: str, reply: Reply) -> Result:
    usage = msgspec.json.decode(reply.body, type=_Counted).usage or {}
    response = _Response(reply.status, f"req_{item.identity}", msgspec.Raw(reply.body))
    return Result(
        _encode(_Line(f"batch_req_{item.identity}", custom_id, response=response)),
        reply.status == 200,
        usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
        usage.get("completion_tokens") or usage.get("output_tokens") or 0,
    )


def _encode(line: _Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _count(counts: Summary, result: Result) -> None:
    counts.answered += result.is_good
    counts.failed += not result.is_good
    counts.prompt_tokens += result.prompt_tokens
    counts.completion_tokens += result.completion_tokens


def _progress(counts: Summary, share: float, seconds: float) -> str:
    done = counts.answered + counts.failed
    speed = counts.completion_tokens / seconds if seconds > 0 else 0.0
    return f"{share:6.1%}  {counts.kept + done} lines, {counts.failed} failed, {speed:.0f} tokens/s"
