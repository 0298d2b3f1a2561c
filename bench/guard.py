"""What protections cost: the time of each guard, and how much later the first token comes behind them.

    python bench/guard.py [--model cria] [--rounds 40] [--policies chatbot coding_assistant agent]

Guards alone: milliseconds of processor time for 1,000 characters of ordinary English, at the point of user input, and
for a whole answer going through a gate in pieces of four characters. Bar: under 5 ms for 1,000 characters.

First token: a server in this process with and without protections, asked in turn by a client over HTTP, streamed; the
median over the rounds of the time to the first piece of text, for a short and a long question. Each question is asked
once, so that nothing of it is remembered. Bar: the median grows by less than the guard's own time minus the time of
reading the question, or not at all where that is below zero. What is within the noise, the larger of two standard
errors of the medians, is not growth.

Prints a table, writes bench/results/guard-DATE.json and ends with 1 where a bar is missed.
"""

import argparse
import asyncio
import datetime
import json
import math
import random
import socket
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
import uvicorn

from puna.bench import machine
from puna.chat import Assistant, Piece, load
from puna.guard import policy
from puna.guard.gate import Gate
from puna.guard.guard import Context
from puna.guard.pipeline import Pipeline, make
from puna.prompt.message import Message, TextPart
from puna.serve.app import Server, Settings
from puna.serve.guarding import Protections
from puna.serve.stepping import ThreadStepper

ROOT = Path(__file__).parents[1]
BAR_MS = 5.0  # for 1,000 characters
WORDS = (
    "the museum opens at nine and closes at five tickets cost ten euros children enter free of charge on sundays there "
    "is a guided tour of the garden which takes an hour and ends in the old kitchen where visitors taste what is cooked"
).split()
LENGTHS = {"short": 20, "long": 400}  # words of a question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cria")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--policies", nargs="+", default=["chatbot", "coding_assistant", "agent"])
    parser.add_argument("--out", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    rng, before = random.Random(0), machine.ticks()
    alone = {name: times_alone(make(policy.load(name)), rng) for name in chosen.policies}
    first = first_tokens(load(chosen.model), chosen.policies, chosen.rounds, rng)
    document = {
        "machine": machine.describe(torch.device("cpu"))._asdict(),
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
        "model": chosen.model,
        "rounds": chosen.rounds,
        "ms_per_1000_chars": alone,
        "first_token_ms": first,
    }
    print(table(document))
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M")
    out = chosen.out or ROOT / "bench" / "results" / f"guard-{stamp}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    missed = [f"{name}: {each}" for name, costs in alone.items() for each, ms in costs.items() if ms > BAR_MS]
    missed += [f"{name}, {length}" for name, by in first.items() for length, each in by.items() if not each["holds"]]
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


def text_of(n_words: int, rng: random.Random) -> str:
    """Returns ordinary words in sentences of a dozen, other ones each time."""
    words = [rng.choice(WORDS) for _ in range(n_words)]
    return " ".join(f"{word}." if i % 12 == 11 else word for i, word in enumerate(words))


def times_alone(pipeline: Pipeline, rng: random.Random, n_texts: int = 30) -> dict[str, float]:
    """Returns milliseconds for 1,000 characters: of each guard on input, and of an answer through the gate."""
    texts = [text_of(400, rng) for _ in range(n_texts)]
    n_chars = sum(map(len, texts))
    found = {}
    for name in pipeline.policy.at("user_input").guards:
        began = time.process_time()
        for text in texts:
            pipeline.judge(name, Context.of_text(text))
        found[name] = 1e6 * (time.process_time() - began) / n_chars
    found["input together"] = sum(found.values())
    began = time.process_time()
    for text in texts:
        gate = Gate(pipeline)
        for start in range(0, len(text), 4):
            gate.push(Piece(0, text[start : start + 4], 1, None, None))
        gate.push(Piece(0, "", 2, None, "stop"))
    return found | {"answer through the gate": 1e6 * (time.process_time() - began) / n_chars}


def first_tokens(
    assistant: Assistant, policies: list[str], rounds: int, rng: random.Random
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns by policy and length of question the medians with and without protections, in milliseconds."""
    servers = {"none": Running(assistant, None)}
    servers |= {name: Running(assistant, Protections(make(policy.load(name)))) for name in policies}
    seconds: dict[tuple[str, str], list[float]] = {(name, length): [] for name in servers for length in LENGTHS}
    for number in range(rounds + 2):
        for length, n_words in LENGTHS.items():
            for name in rng.sample(list(servers), len(servers)):
                taken = servers[name].first_token_seconds(text_of(n_words, rng))
                if number >= 2:  # the first two warm up
                    seconds[name, length].append(taken)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in policies:
        guards = servers[name].screen.pipeline  # type: ignore[union-attr]
        for length, n_words in LENGTHS.items():
            messages = [Message("user", (TextPart(text_of(n_words, rng)),))]
            began = time.perf_counter()
            guards.check_input(messages)
            guard_ms = 1e3 * (time.perf_counter() - began)
            found.setdefault(name, {})[length] = compared(seconds["none", length], seconds[name, length], guard_ms)
    for server in servers.values():
        server.stop()
    return found


def compared(without: list[float], behind: list[float], guard_ms: float) -> dict[str, Any]:
    """Returns two medians, the growth, what it may be, and whether it holds. Reading is all of the time without."""
    before, after = 1e3 * statistics.median(without), 1e3 * statistics.median(behind)
    noise = 2 * 1.2533 * 1e3 * max(statistics.stdev(each) / math.sqrt(len(each)) for each in (without, behind))
    allowed = max(0.0, guard_ms - before)
    return {
        "without": before,
        "behind": after,
        "growth": after - before,
        "guard": guard_ms,
        "allowed": allowed,
        "noise": noise,
        "holds": after - before <= allowed + noise,
    }


class Running:
    """A server in a thread of this process."""

    def __init__(self, assistant: Assistant, screen: Protections | None) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.screen = screen
        self._url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
        app = Server(assistant.prompter, ThreadStepper(assistant), Settings(model="bench", screen=screen)).app
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        serve = self._uvicorn.serve(sockets=[listening])
        self._thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)
        self._thread.start()

    def first_token_seconds(self, text: str) -> float:
        """Returns how long the first piece of text of a streamed answer takes; reads the rest."""
        asked = {"model": "bench", "stream": True, "max_tokens": 8, "temperature": 0}
        body = json.dumps(asked | {"messages": [{"role": "user", "content": text}]}).encode()
        request = urllib.request.Request(self._url, data=body, headers={"Content-Type": "application/json"})
        began, first = time.perf_counter(), None
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if first is None and b'"content":"' in line and b'"content":""' not in line:
                    first = time.perf_counter() - began
        return time.perf_counter() - began if first is None else first

    def stop(self) -> None:
        """Ends the server."""
        self._uvicorn.should_exit = True
        self._thread.join()


def table(document: dict[str, Any]) -> str:
    """Returns both tables as text."""
    rows = [f"{'policy':18} {'what':26} {'ms per 1,000 characters':>24}"]
    for name, costs in document["ms_per_1000_chars"].items():
        rows += [f"{name:18} {what:26} {ms:24.2f}" for what, ms in costs.items()]
    rows += [
        "",
        f"{'policy':18} {'question':10} {'without':>9} {'behind':>9} {'growth':>9} {'allowed':>9} {'noise':>7}",
    ]
    for name, by_length in document["first_token_ms"].items():
        rows += [
            f"{name:18} {length:10} {each['without']:9.2f} {each['behind']:9.2f} {each['growth']:9.2f} "
            f"{each['allowed']:9.2f} {each['noise']:7.2f} {'' if each['holds'] else 'MISSED'}"
            for length, each in by_length.items()
        ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
