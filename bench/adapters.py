"""What adapters cost while decoding: batches without any, with one for all, and with several, over one model.

    python bench/adapters.py [MODEL] [--quantize int8] [--rank 16] [--rows 8] [--adapters 4] [--rounds 5] [--out FILE]

Adapters are random and correct attention, shared and routed experts (of a dense model attention and the dense layers).
Each round times every kind of batch once, in turns, so that a busy moment hits all alike; what is told are medians of
tokens a second. "half" has adapters in every second row: where CUDA graphs decode, such a step is two forwards
(docs/decisions/019). "merged, as written" has one adapter merged into weights that are not packed, and so runs through
the plain runner: beside it, "one adapter" shows what corrections alone cost.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from puna.adapters.merge import merge
from puna.adapters.shelf import Shelf
from puna.adapters.spec import Adapter, Spec, begin
from puna.chat import load
from puna.engine.engine import Engine
from puna.engine.request import Request, Sampling
from puna.weights import checkpoint, hub

PROMPT_LEN = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cria", help="directory or hub id (default: cria)")
    parser.add_argument("--quantize", choices=("int4", "int8", "fp8"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8, help="sequences that are decoded together")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--steps", type=int, default=64, help="tokens of each sequence that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the record goes")
    asked = parser.parse_args()

    llama = load(asked.model, quantize=asked.quantize)
    config, spec = llama.config, Spec(rank=asked.rank, targets=_targets(llama.config.text.moe_layers))
    adapters = {f"a{i}": random_adapter(config, spec, i) for i in range(asked.adapters)}
    names = list(adapters)
    engine = Engine(llama.model, shelf=Shelf(llama.model, adapters), max_sequences=asked.rows)
    plain = Engine(llama.model, max_sequences=asked.rows)
    kinds: dict[str, tuple[Engine, list[str | None]]] = {
        "base": (plain, [None] * asked.rows),
        "base beside a shelf": (engine, [None] * asked.rows),
        "one adapter": (engine, [names[0]] * asked.rows),
        f"{len(names)} adapters": (engine, [names[i % len(names)] for i in range(asked.rows)]),
        "half": (engine, [names[i % len(names)] if i % 2 else None for i in range(asked.rows)]),
    }
    if asked.quantize is None:
        single = checkpoint.load(hub.resolve(asked.model))
        merge(single, adapters[names[0]])
        kinds["merged, as written"] = (Engine(single, max_sequences=asked.rows), [None] * asked.rows)
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(asked.rounds):
        for kind, (runs, rows) in kinds.items():
            speeds[kind].append(tokens_per_second(runs, rows, asked.steps))
    record = {
        "model": asked.model,
        "quantize": asked.quantize,
        "rank": asked.rank,
        "rows": asked.rows,
        "threads": torch.get_num_threads(),
        "device": str(llama.model.norm.weight.device),
        "tokens_per_second": {kind: round(statistics.median(each), 1) for kind, each in speeds.items()},
        "rounds": {kind: [round(x, 1) for x in each] for kind, each in speeds.items()},
    }
    text = json.dumps(record, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")


def random_adapter(config: Any, spec: Spec, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    fresh: Mapping[str, Any] = begin(config, spec, generator)
    return {
        name: each._replace(b=torch.randn(each.b.shape, generator=generator) * 0.01) for name, each in fresh.items()
    }


def tokens_per_second(engine: Engine, rows: list[str | None], n_steps: int) -> float:
    """Returns the speed of decoding of so many rows together, prompts read before."""
    engine.forget()
    sampling = Sampling(temperature=0, max_new_tokens=n_steps + 4)
    for i, adapter in enumerate(rows):
        ids = [(7 * i + j) % 200 + 1 for j in range(PROMPT_LEN)]
        engine.add(Request(ids=ids, sampling=sampling, adapter=adapter))
    while len(engine.step()) < len(rows):
        pass
    begin_seconds = time.perf_counter()
    n_tokens = sum(len(engine.step()) for _ in range(n_steps))
    seconds = time.perf_counter() - begin_seconds
    while not engine.is_idle:
        engine.step()
    return n_tokens / seconds


def _targets(moe_layers: frozenset[int]) -> Any:
    return frozenset({"attention", "shared", "experts"} if moe_layers else {"attention", "dense"})


if __name__ == "__main__":
    main()
