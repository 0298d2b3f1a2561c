"""puna's server under load: many clients at once, and what it costs beside the engine alone.

    python bench/serve.py [MODEL] [--clients 200] [--seconds 60] [--rounds 3] [--engine-seconds 15]

First all clients ask for a while, each one thing after the other: streams, whole answers, pictures, and answers that
are dropped half-way. Counted are errors other than 429, time to the first token, time between events and for a token,
and how evenly clients got on (the least over the most tokens of a client). Then the same prompts run alternately
through the engine alone, ids in and ids out, and as streams of all clients: tokens a second of both, in one process and
one sitting. Streams come in three ways: as long as the model makes them, with the server's bound on events a second;
the same with one event for each token; and, with the bound again, of exactly MAX_TOKENS tokens, as other benchmarks
have them.

The server is that of `puna serve`: the model in this process, HTTP in another. The clients are a third process that
does little but count, at the lowest priority: they would be elsewhere. Requests are logged, to nowhere. All share the
processors, so what clients use is part of what the server seems to cost; processor time a token is told of each. With
--threads 1 on two cores the model has one to itself and the rest the other. Writes
bench/results/serve-DATE-PROCESSOR.json and prints a table.
"""

import argparse
import asyncio
import base64
import datetime
import functools
import io
import itertools
import json
import logging
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

ROOT = Path(__file__).parents[1]
MODEL = "bench"
N_PROMPTS = 400
MAX_TOKENS = 64
SLACK_SECONDS = 1.5  # until everybody is at work, which does not count
OPENINGS = ("Tell me a story about", "What is", "Write one line about", "How many letters has", "Who was")


class Way(NamedTuple):
    """How streams are asked for. `is_long`: MAX_TOKENS each, whatever the model makes."""

    title: str
    events_per_second: float
    is_long: bool


def prompt(number: int) -> str:
    """Returns a question that no other number has, of 5 to 85 words."""
    words = " and ".join(f"the number {number * 7 + i}" for i in range(1 + number % 14))
    return f"{OPENINGS[number % len(OPENINGS)]} {words}?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cria", help="directory or hub id (default: cria)")
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="at the same time (default 200)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="of mixed load (default 60)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of engine and server in turn (default 3)")
    parser.add_argument("--engine-seconds", type=float, default=15, metavar="S", help="of each of them (default 15)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the model (default: as torch finds)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the document goes")
    parser.add_argument("--clients-of", metavar="ADDRESS", help=argparse.SUPPRESS)  # what this program starts
    parser.add_argument("--events-per-second", type=float, metavar="N", help="the bound (default: the server's)")
    parser.add_argument("--mixed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.clients_of:
        host, _, port = chosen.clients_of.rpartition(":")
        os.nice(19)
        asked = Asked(chosen.mixed, chosen.long)
        print(json.dumps(uvloop.run(clients(host, int(port), chosen.clients, chosen.seconds, asked))))
    else:
        serve_and_measure(chosen)


# The server's side ------------------------------------------------------------------------------------------------


def serve_and_measure(chosen: argparse.Namespace) -> None:
    """Measures everything, writes the document and prints the table."""
    from puna.serve.waiting import wait_briefly

    wait_briefly()  # as `puna serve` does, before torch is there
    import torch

    import puna
    from puna.bench import machine
    from puna.serve import app

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    processor = machine.describe(torch.device("cpu")).processor
    begin, before = datetime.datetime.now(datetime.UTC), machine.ticks()
    assistant = puna.load(chosen.model)
    bound = chosen.events_per_second
    bound = app.Settings(model=MODEL).events_per_second if bound is None else bound
    ways = (
        Way(f"{bound:.0f} events a second", bound, False),
        Way("an event a token", 0.0, False),
        Way(f"answers of {MAX_TOKENS}", bound, True),
    )
    rounds: list[list[dict[str, Any]]] = [[] for _ in ways]
    with Serving(assistant, bound) as paced, Serving(assistant, 0.0) as unpaced:
        load = ask_clients(paced.address, chosen.clients, chosen.seconds, mixed=True)
        for number in range(chosen.rounds):
            alone: dict[bool, dict[str, float]] = {}
            for way, of_way in zip(ways, rounds, strict=True):
                serving = paced if way.events_per_second else unpaced
                wait_until_idle(serving.address)
                if way.is_long not in alone:
                    alone[way.is_long] = engine_alone(assistant, chosen.clients, chosen.engine_seconds, way.is_long)
                told = serving.streams(chosen.clients, chosen.engine_seconds, way.is_long)
                lost = 1 - told["tokens_per_second"] / alone[way.is_long]["tokens_per_second"]
                of_way.append({"engine": alone[way.is_long], "streamed": told, "lost": lost})
                print(f"round {number + 1}, {way.title}: {lost:.1%} lost", file=sys.stderr, flush=True)
    disturbance = machine.disturbance(before, machine.ticks())
    document = {
        "date": begin.isoformat(timespec="seconds"),
        "model": Path(chosen.model).name,
        "puna": puna.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor,
        "others": disturbance._asdict(),
        "clients": chosen.clients,
        "waiting": {name: value for name, value in os.environ.items() if name.startswith(("OMP_WAIT", "GOMP_SPIN"))},
        "load": load,
        "ways": [
            way._asdict() | {"rounds": of_way, "overhead": overhead(of_way)}
            for way, of_way in zip(ways, rounds, strict=True)
        ],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", processor.lower())[:24].strip("-")
    out = chosen.out or ROOT / "bench" / "results" / f"serve-{begin:%Y-%m-%dT%H%M}-{slug}.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))
    print(f"\n{out}")


class Serving:
    """A server on this model for as long as it is open."""

    def __init__(self, assistant: Any, events_per_second: float) -> None:
        from puna.serve import apart, app

        settings = app.Settings(model=MODEL, events_per_second=events_per_second)
        listening, url = app.listen("127.0.0.1", 0, settings)
        self.address = url.removeprefix("http://").removesuffix("/v1")
        self._face = apart.Face(assistant, settings, None, listening, drain_seconds=10)
        self._stepping = threading.Thread(target=self._face.step)

    def __enter__(self) -> "Serving":
        errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        logger = logging.getLogger("puna.serve")
        level = logger.level
        logger.setLevel(logging.INFO)
        os.dup2(nowhere, 2)  # what is started now writes there
        try:
            self._face.__enter__()
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            os.close(nowhere)
            logger.setLevel(level)
        self._stepping.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._face.stop()
        self._stepping.join()
        self._face.__exit__()

    def streams(self, n: int, seconds: float, is_long: bool) -> dict[str, Any]:
        """Has clients stream, and returns what that made, what it took and what they saw."""
        made = Made(self.address, self._face.process.pid)
        told = ask_clients(self.address, n, seconds, is_long=is_long, during=made)
        return made.rate | {"clients": told}


def overhead(rounds: Sequence[dict[str, Any]]) -> float:
    """Returns what share of the engine's own throughput is missing: the median of all rounds."""
    return statistics.median(each["lost"] for each in rounds)


def counted(address: str, name: str) -> float:
    """Returns one number of the server's /metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        line = re.search(rb"^puna_%b\{.*\} (\S+)$" % name.encode(), reply.read(), re.MULTILINE)
    assert line is not None, "the server counts it"
    return float(line[1])


def wait_until_idle(address: str) -> None:
    """Returns once the server works for nobody, so that somebody else may step the engine."""
    while any(counted(address, f"num_requests_{state}") for state in ("running", "waiting")):
        time.sleep(0.1)


class Made:
    """Counts what the server makes between two moments, and what its processes use for that."""

    def __init__(self, address: str, http_pid: int) -> None:
        self._address = address
        self._http_pid = http_pid
        self.rate: dict[str, float] = {}

    def __call__(self, seconds: float) -> None:
        tokens, used, begin = self._tokens(), self._used(), time.perf_counter()
        time.sleep(seconds)
        n, passed = max(self._tokens() - tokens, 1), time.perf_counter() - begin
        of_model, of_http = (after - before for before, after in zip(used, self._used(), strict=True))
        self.rate = {
            "tokens_per_second": n / passed,
            "model_us_per_token": of_model / n * 1e6,
            "http_us_per_token": of_http / n * 1e6,
        }

    def _tokens(self) -> float:
        return counted(self._address, "generation_tokens_total")

    def _used(self) -> tuple[float, float]:
        return sum(os.times()[:2]), process_seconds(self._http_pid)


def process_seconds(pid: int) -> float:
    """Returns the processor time of a process, 0 where the system does not tell."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    user, system = stat.read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def engine_alone(assistant: Any, n_open: int, seconds: float, is_long: bool = False) -> dict[str, float]:
    """Runs the prompts of the streams through the engine, `n_open` at a time: one that ends makes room for the next."""
    from puna.engine.request import Request, Sampling

    stops = frozenset() if is_long else assistant.tokenizer.stop_ids | frozenset(assistant.config.stop_ids)
    sampling = Sampling(temperature=0.0, max_new_tokens=MAX_TOKENS, stop_ids=stops)
    prompts = [assistant.prompt([{"role": "user", "content": prompt(i)}]).ids for i in range(N_PROMPTS)]
    numbers, engine, n_tokens, begin = numbers_of_all(n_open), assistant.engine, 0, None
    used = 0.0
    open_ = {engine.add(Request(ids=prompts[next(of_one)], sampling=sampling)): of_one for of_one in numbers}
    end = time.perf_counter() + SLACK_SECONDS + seconds
    while (now := time.perf_counter()) < end:
        if begin is None and now > end - seconds:
            begin, n_tokens, used = now, 0, sum(os.times()[:2])
        for event in engine.step():
            n_tokens += event.token is not None
            if event.finish is not None:
                of_one = open_.pop(event.request_id)
                open_[engine.add(Request(ids=prompts[next(of_one)], sampling=sampling))] = of_one
    passed = time.perf_counter() - (begin or end - seconds)
    for number in open_:
        engine.abort(number)
    used = sum(os.times()[:2]) - used
    return {"tokens_per_second": n_tokens / passed, "model_us_per_token": used / max(n_tokens, 1) * 1e6}


def numbers_of_all(n_clients: int) -> list[Iterator[int]]:
    """Returns which prompts each client asks for, one after the other."""
    return [itertools.cycle([(i * 31 + k) % N_PROMPTS for k in range(N_PROMPTS)]) for i in range(n_clients)]


def ask_clients(
    address: str, n: int, seconds: float, *, mixed: bool = False, is_long: bool = False, during: Any = None
) -> dict[str, Any]:
    """Runs clients in a process of their own and returns what they tell; calls `during` with the seconds that count."""
    command = [sys.executable, __file__, "--clients-of", address, "--clients", str(n)]
    command += [
        "--seconds",
        str(seconds + 2 * SLACK_SECONDS),
        *(["--mixed"] if mixed else []),
        *(["--long"] if is_long else []),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if during is not None:
            process.stdout.readline()  # all are connected
            time.sleep(SLACK_SECONDS)
            during(seconds)
        told = process.stdout.read()
    document: dict[str, Any] = json.loads(told.splitlines()[-1])
    return document


# The clients' side ------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What clients ask for: with `is_mixed` also whole answers, pictures and answers that they drop."""

    is_mixed: bool
    is_long: bool


class Client(asyncio.Protocol):
    """One connection: sends a request, notes when parts of the answer come, and says when it has ended."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.times: list[float] = []  # of events with text
        self.drop_after = 0  # events, where the client leaves before the end
        self._tail = b""
        self.head = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, body: bytes, drop_after: int) -> None:
        """Sends a request; `ended` is done once its answer is there."""
        self.times, self._tail, self.head, self.drop_after = [], b"", b"", drop_after
        self.ended = asyncio.get_running_loop().create_future()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d"
        self.transport.write((head + b"\r\n\r\n") % len(body) + body)

    def data_received(self, data: bytes) -> None:
        if not self.head:
            self.head = data[:64]
        now = time.perf_counter()
        self.times += [now] * data.count(b'"content":')
        self._tail = (self._tail + data)[-400:]
        if self.drop_after and len(self.times) > self.drop_after:
            self.transport.abort()
            self._end()
        elif self._tail.endswith(b"0\r\n\r\n") or (b"text/event-stream" not in self.head and self._is_whole(data)):
            self._end()

    def leave(self) -> None:
        """Drops what is not there yet."""
        if not self.ended.done():
            self.transport.abort()
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _is_whole(self, data: bytes) -> bool:
        return data.endswith(b"}") and b"\r\n\r\n" in data and b"content-length" in data[:400].lower()

    @property
    def status(self) -> int:
        return int(self.head[9:12] or 0)

    @property
    def n_tokens(self) -> int:
        """As the server counts them, or events where it was not asked to the end."""
        counted = re.search(rb'"completion_tokens":(\d+)', self._tail)
        return int(counted[1]) if counted else len(self.times)


async def clients(host: str, port: int, n: int, seconds: float, asked: Asked) -> dict[str, Any]:
    """Lets `n` clients ask one thing after the other for some seconds. Returns what they saw."""
    picture = picture_url() if asked.is_mixed else ""
    end = time.perf_counter() + seconds
    all_numbers = enumerate(numbers_of_all(n))
    told = await asyncio.gather(
        *(one(host, port, numbers, end, random.Random(i), picture, asked.is_long) for i, numbers in all_numbers)
    )
    first = [each for client in told for each in client["first"]]
    between = [each for client in told for each in client["between"]]
    per_token = [each for client in told for each in client["per_token"]]
    tokens = [client["tokens"] for client in told]
    statuses: dict[str, int] = {}
    for client in told:
        for status, count in client["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "statuses": statuses,
        "dropped": sum(client["dropped"] for client in told),
        "errors": sum(count for status, count in statuses.items() if status not in ("200", "429")),
        "tokens": sum(tokens),
        "least_tokens": min(tokens),
        "most_tokens": max(tokens),
        "fairness": min(tokens) / max(max(tokens), 1),
        "first_token_seconds": percentiles(first),
        "between_events_seconds": percentiles(between),
        "per_token_seconds": percentiles(per_token),
        "events_per_second": len(between + first) / seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }


async def one(
    host: str, port: int, numbers: Iterator[int], end: float, dice: random.Random, picture: str, is_long: bool
) -> dict[str, Any]:
    """Is one client: asks until the end, and drops what is not there by then."""
    loop, client = asyncio.get_running_loop(), None
    seen: dict[str, Any] = {"statuses": {}, "dropped": 0, "tokens": 0}
    seen |= {"first": [], "between": [], "per_token": []}
    open_: list[Client | None] = [None]

    def leave() -> None:
        if open_[0] is not None:
            open_[0].leave()

    loop.call_later(end - time.perf_counter() + 0.01, leave)  # timers are early by up to a millisecond
    if not picture and next_is_first(numbers):
        print("connected", flush=True)
    while time.perf_counter() < end:
        if client is None or client.transport is None:
            _, client = await loop.create_connection(Client, host, port)
        kind = dice.choices(("stream", "whole", "picture", "drop"), (7, 1, 1, 1))[0] if picture else "stream"
        open_[0], begin = client, time.perf_counter()
        client.ask(body_of(kind, next(numbers), picture, is_long), dice.randrange(1, 20) if kind == "drop" else 0)
        await client.ended
        was_dropped = client.transport is None or client.transport.is_closing()
        if client.status or not was_dropped:
            seen["statuses"][str(client.status)] = seen["statuses"].get(str(client.status), 0) + 1
        elif time.perf_counter() < end:
            seen["statuses"]["0"] = seen["statuses"].get("0", 0) + 1  # the server left without a word
        seen["dropped"] += was_dropped
        seen["tokens"] += client.n_tokens
        if kind != "whole" and client.times[1:]:  # the first event only says who speaks
            seen["first"].append(client.times[1] - begin)
            seen["between"] += [b - a for a, b in itertools.pairwise(client.times[1:])]
            if not was_dropped and len(client.times) > 2:
                seen["per_token"].append((client.times[-1] - client.times[1]) / (client.n_tokens - 1))
        if was_dropped:
            client = None
        if client is not None and client.status == 429:
            await asyncio.sleep(0.2)
    return seen


def next_is_first(numbers: Iterator[int]) -> bool:
    """Says whether this is the first client, whose cycle begins with prompt 0."""
    return next(numbers) == 0


@functools.cache
def body_of(kind: str, number: int, picture: str, is_long: bool = False) -> bytes:
    """Returns a request; every third of a mixed load is sampled, the others take the most probable tokens."""
    content: Any = prompt(number)
    if kind == "picture":
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": content}]
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS}
    asked["messages"] = [{"role": "user", "content": content}]
    if kind != "whole":
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    if is_long:
        asked["ignore_eos"] = True
    if picture and number % 3 == 0:
        asked |= {"temperature": 0.8, "seed": number}
    return json.dumps(asked).encode()


def picture_url() -> str:
    """Returns a small picture as a data URL."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# What was found ---------------------------------------------------------------------------------------------------


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns p50, p95 and the most."""
    if len(seconds) < 2:
        return dict.fromkeys(("p50", "p95", "max"), 0.0)
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "max": max(seconds)}


def spread(seconds: dict[str, float]) -> str:
    """Returns p50 and p95 in milliseconds."""
    return f"p50 {1000 * seconds['p50']:.0f} ms, p95 {1000 * seconds['p95']:.0f} ms"


def table(document: dict[str, Any]) -> str:
    """Returns the figures as lines."""
    load = document["load"]
    rows = [f"{document['clients']} clients, {document['processor']}, {document['threads']} threads"]
    rows += [f"answers by status   {load['statuses']}, {load['dropped']} dropped by clients, {load['errors']} errors"]
    rows += [f"tokens of a client  {load['least_tokens']} to {load['most_tokens']}: {load['fairness']:.2f}"]
    names = {
        "first_token_seconds": "to first token",
        "between_events_seconds": "between events",
        "per_token_seconds": "for a token",
    }
    rows += ["mixed load: " + "; ".join(f"{title} {spread(load[name])}" for name, title in names.items())]
    rows.append("processor in microseconds a token: of the engine alone; as streams of the model, of HTTP, of clients")
    for way in document["ways"]:
        rows.append(f"{way['title']}: {way['overhead']:.1%} of the engine's throughput lost")
        for each in way["rounds"]:
            alone, streamed, told = each["engine"], each["streamed"], each["streamed"]["clients"]
            clients_us = told["processor_seconds"] / max(told["tokens"], 1) * 1e6
            rows.append(
                f"  {alone['tokens_per_second']:6.0f} tok/s alone, {streamed['tokens_per_second']:6.0f} as streams,"
                f" {each['lost']:6.1%} lost; {alone['model_us_per_token']:4.0f};"
                f" {streamed['model_us_per_token']:4.0f}, {streamed['http_us_per_token']:3.0f}, {clients_us:3.0f}"
            )
        told = way["rounds"][-1]["streamed"]["clients"]
        rows.append("  " + "; ".join(f"{title} {spread(told[name])}" for name, title in names.items()))
    rows.append(f"others took {document['others']}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
