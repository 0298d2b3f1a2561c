"""Decoding as planned beside decoding as it is: the memory's speed is measured between the tokens that are timed.

    python bench/planned.py MODEL [MODEL ...] [--cases 1x128 1x2048 8x128] [--rounds 8] [--out FILE]

MODEL is a directory. On a virtual machine memory is read at speeds that change within seconds, so a probe before or
after says little about the tokens: here every round reads a gigabyte, decodes and reads it again, and the plan counts
with the median of those readings. What is planned is `puna plan MODEL --hardware here`, nothing is fitted.
An idle machine and about half a minute a model are needed.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import puna
from puna.bench import machine
from puna.bench.here import hardware_here
from puna.engine.engine import Engine
from puna.engine.request import Request, Sampling
from puna.hardware import Hardware
from puna.plan import serve
from puna.plan.cluster import Cluster
from puna.plan.serve import Asked
from puna.plan.shares import Serving
from puna.plan.stored import scheme
from puna.weights.source import open_source

STEPS = 12
"""Tokens of each sequence in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--cases", nargs="+", default=["1x128", "1x2048", "8x128"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    before, here, rows = machine.ticks(), hardware_here(), []
    print(f"{here.name}: {here.read_bytes / 1e9:.1f} GB/s, {here.flops['bfloat16'] / 1e9:.0f} GFLOP/s, as probed")
    print(f"{'':24}{'GB/s':>8}{'measured':>10}{'planned':>10}{'error':>8}")
    for model in chosen.models:
        engine = puna.load(str(model)).engine
        for case in chosen.cases:
            batch, context = map(int, case.split("x"))
            rows.append(compared(engine, model, here, batch, context, chosen.rounds))
    record = {
        "machine": machine.describe(torch.device("cpu"))._asdict(),
        "probe": {"read_bytes": here.read_bytes, "flops": dict(here.flops)},
        "rows": rows,
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def compared(engine: Engine, model: Path, here: Hardware, batch: int, context: int, rounds: int) -> dict[str, Any]:
    """Decodes and plans one case, and prints both."""
    numbers, sampling = random.Random(context), Sampling(temperature=0.0, max_new_tokens=STEPS * (rounds + 1) + batch)
    ids = [[numbers.randrange(1000) for _ in range(context)] for _ in range(batch)]
    unread = {engine.add(Request(ids=each, sampling=sampling)) for each in ids}
    requests = tuple(unread)
    while unread:
        unread -= {event.request_id for event in engine.step()}
    memory = torch.ones(machine.READ_BYTES // 4)
    reads, rates = [reading(memory)], []
    for _ in range(rounds):
        begin = time.perf_counter()
        n_tokens = sum(len(engine.step()) for _ in range(STEPS))
        rates.append(n_tokens / (time.perf_counter() - begin))
        reads.append(reading(memory))
    for request in requests:
        engine.abort(request)
    measured, read = statistics.median(rates), statistics.median(reads)
    planned = tokens_planned(model, replace(here, read_bytes=read), batch, context)
    name = f"{model.name}, {batch} x {context:,}"
    print(f"{name:24}{read / 1e9:8.1f}{measured:10.1f}{planned:10.1f}{planned / measured - 1:+8.0%}", flush=True)
    return {"case": name, "read_bytes": read, "reads": reads, "measured": measured, "rates": rates, "planned": planned}


def reading(memory: torch.Tensor) -> float:
    """Returns the bytes a second at which memory is read just now."""
    begin = time.perf_counter()
    memory.sum()
    return memory.nbytes / (time.perf_counter() - begin)


def tokens_planned(model: Path, here: Hardware, batch: int, context: int) -> float:
    """Returns the tokens a second that a plan of the checkpoint says."""
    source = open_source(model)
    asked = Asked(
        context=context,
        batch=batch,
        float_bytes=source.dtype.itemsize,
        stored=scheme(source.config, source.formats),
    )
    return serve.serve(source.config, Cluster(hardware=here, count=1), Serving(), asked).decode.tokens


if __name__ == "__main__":
    main()
