"""Training speed of puna beside others: one step of forward, backward and AdamW, in tokens a second.

    python bench/train.py CKPT --transformers BENCH_TRAIN.py --torchtitan BENCH_TITAN.py [--rounds 3] [--out FILE]

CKPT: a checkpoint that puna and transformers train, from float32 masters, 2 rows of 512 random ids a step, sums in
bfloat16. BENCH_TRAIN.py is called with CKPT --autocast, with and without --compile; BENCH_TITAN.py, whose model has
the same size, with --autocast. Both print JSON lines, the last one with `train_tok_s`. All take turns, each time in a
process of its own, started through --under if that is given: a command that keeps others off the processor.
The floor is 6 operations a token and active parameter at the matrix products' rate measured here.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROWS, ROW_LEN = 2, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--transformers", type=Path, help="the script that times transformers")
    parser.add_argument("--torchtitan", type=Path, help="the script that times torchtitan's blocks")
    parser.add_argument("--under", default="", help="a command before each that is timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7, help="of a round that count")
    parser.add_argument("--matrices", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.checkpoint, chosen.steps, chosen.matrices)))
        return
    from puna.bench import machine

    before = machine.ticks()
    turns = {name: [*shlex.split(chosen.under), *command] for name, command in commands(chosen).items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    for number in range(chosen.rounds):
        for name, command in turns.items():
            found[name].append(last_line(command))
        rates = {name: round(each[-1]["train_tok_s"], 1) for name, each in found.items()}
        print(f"round {number + 1}: {rates}", file=sys.stderr)
    medians = {name: statistics.median(each["train_tok_s"] for each in rounds) for name, rounds in found.items()}
    record: dict[str, Any] = {
        "checkpoint": chosen.checkpoint.name,
        "rows": ROWS,
        "row_len": ROW_LEN,
        "matrices": chosen.matrices,
        "medians": medians,
        "puna_against": {name: medians["puna"] / rate for name, rate in medians.items() if name != "puna"},
        "rounds": found,
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")


def commands(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Returns what is timed, by name."""
    python, checkpoint = sys.executable, str(chosen.checkpoint)
    options = ["--measure", "--steps", str(chosen.steps), "--matrices", chosen.matrices]
    found = {"puna": [python, __file__, checkpoint, *options]}
    if chosen.transformers is not None:
        eager = [python, str(chosen.transformers), checkpoint, "--autocast"]
        found |= {"transformers, compiled": [*eager, "--compile"], "transformers, eager": eager}
    if chosen.torchtitan is not None:
        found["torchtitan, eager"] = [python, str(chosen.torchtitan), "--autocast"]
    return found


def last_line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line if "train_tok_s" in line else line | {"train_tok_s": line["value"]}


def measure(folder: Path, n_steps: int, matrices: str) -> dict[str, Any]:
    """Times steps of this package on random ids."""
    import torch

    from puna.bench import machine, work
    from puna.train.memory import keep_memory
    from puna.train.next_token import NextToken
    from puna.train.optim import Optimizer, cast
    from puna.train.pack import Batch
    from puna.train.recipe import OptimizerRecipe
    from puna.weights.checkpoint import load

    torch.set_num_threads(2)
    keep_memory()
    model = load(folder, dtype=torch.float32)
    options = OptimizerRecipe(
        lr=1e-4, weight_decay=0.01, momentum=0.95, beta1=0.9, beta2=0.999, eps=1e-8, clip_norm=1.0, matrices=matrices
    )
    optimizer = Optimizer(model.named_parameters(), options)
    cast(model, torch.bfloat16)
    loss = NextToken(model, balance=0.01, z=0.0, chunk=ROWS * ROW_LEN, compiled=True)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"passes": [], "update": []}
    losses = []
    for step in range(n_steps + 2):
        ids = torch.randint(0, model.config.text.vocab_size - 64, (ROWS, ROW_LEN + 1), generator=generator)
        batch = Batch(
            ids=ids[:, :-1].contiguous(),
            positions=torch.arange(ROW_LEN).repeat(ROWS, 1),
            documents=torch.zeros(ROWS, ROW_LEN, dtype=torch.int64),
            targets=ids[:, 1:].contiguous(),
            weights=torch.ones(ROWS, ROW_LEN),
            tiles=torch.zeros(0, 3, 16, 16, dtype=torch.uint8),
            n_tiles=0,
            pieces=((), ()),
        )
        began = time.perf_counter()
        part = loss(batch, batch.weights.sum())
        part.total.backward()
        middle = time.perf_counter()
        optimizer.step(1.0)
        ended = time.perf_counter()
        losses.append(round(float(part.nll), 3))
        if step > 1:
            seconds["passes"].append(middle - began)
            seconds["update"].append(ended - middle)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    flops = machine.flops(torch.device("cpu"), torch.bfloat16, 3, machine.GEMM_SIZE)
    per_token = 6 * work.read_parameters(model.config)
    rate = ROWS * ROW_LEN / sum(medians.values())
    return {
        "train_tok_s": rate,
        "share_of_floor": rate * per_token / flops,
        **{f"{name}_s": value for name, value in medians.items()},
        "floor_tok_s": flops / per_token,
        "gflops": flops / 1e9,
        "losses": losses,
        "peak_rss_gib": machine.peak_resident_bytes() / 2**30,
    }


if __name__ == "__main__":
    main()
