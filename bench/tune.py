"""Speed of tuning beside TRL and PEFT: one supervised step on the same toy, in tokens a second, in one sitting.

    python bench/tune.py [--modes full,attention,experts] [--rounds 3] [--rows 2] [--row-len 512] [--out FILE]

The toy is cria's decoder with random weights and no eyes. Both make a step of forward, backward and AdamW on random
ids, all of them learnt, sums in bfloat16, without compilation. `attention` trains factors on attention and shared
experts, `experts` on routed experts too. The two take turns, each time in a process of its own; TRL's is that of
tests/reference/referees.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".referees" / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="full,attention,experts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of a round that count")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row-len", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("CKPT", "MODE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = [str(each) for each in (chosen.steps, chosen.rows, chosen.row_len)]
    if chosen.measure:
        print(
            json.dumps(measure(Path(chosen.measure[0]), chosen.measure[1], chosen.steps, chosen.rows, chosen.row_len))
        )
        return
    from puna.bench import machine

    before, found = machine.ticks(), dict[str, dict[str, list[Any]]]()
    with tempfile.TemporaryDirectory() as name:
        toy = write_toy(Path(name) / "toy")
        for number in range(chosen.rounds):
            for mode in chosen.modes.split(","):
                own = [sys.executable, __file__, "--measure", str(toy), mode]
                own += ["--steps", sizes[0], "--rows", sizes[1], "--row-len", sizes[2]]
                peer = [str(PEER), str(ROOT / "bench" / "peer_trl.py"), str(toy), mode, *sizes]
                for who, command in (("puna", own), ("trl", peer)):
                    found.setdefault(mode, {}).setdefault(who, []).append(answer(command))
            print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
    tokens = chosen.rows * chosen.row_len
    rates = {
        mode: {
            who: tokens / statistics.median(s for each in rounds for s in each["seconds"])
            for who, rounds in both.items()
        }
        for mode, both in found.items()
    }
    record = {
        "rows": chosen.rows,
        "row_len": chosen.row_len,
        "tokens_per_second": rates,
        "ratio": {mode: both["puna"] / both["trl"] for mode, both in rates.items()},
        "trained": {mode: {who: rounds[0]["trained"] for who, rounds in both.items()} for mode, both in found.items()},
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
        "rounds": found,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")


def write_toy(folder: Path) -> Path:
    """Writes cria's decoder with random weights."""
    import torch

    from puna.model.transformer import Llama, initialise
    from puna.presets import PRESETS
    from puna.weights.checkpoint import save_hf

    config = replace(PRESETS["cria"], vision=None, image_start_id=None, image_end_id=None, patch_id=None)
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    save_hf(model.to(torch.bfloat16), config, folder)
    return folder


def answer(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(folder: Path, mode: str, n_steps: int, rows: int, row_len: int) -> dict[str, Any]:
    """Times steps of this package."""
    import torch

    from puna.adapters.attach import attach, trained
    from puna.adapters.spec import Spec, begin
    from puna.train.next_token import NextToken
    from puna.train.objective import Objective
    from puna.train.optim import Optimizer, cast
    from puna.train.pack import Batch
    from puna.train.recipe import LossRecipe, OptimizerRecipe
    from puna.train.supervised import Supervised
    from puna.train.update import OneProcess
    from puna.weights.checkpoint import load

    wish = OptimizerRecipe(
        lr=1e-4, weight_decay=0.0, momentum=0.9, beta1=0.9, beta2=0.999, eps=1e-8, clip_norm=1.0, matrices="adamw"
    )
    options = LossRecipe(balance=0.0, chunk=1024)
    model = load(folder, dtype=torch.float32 if mode == "full" else torch.bfloat16).requires_grad_(True)
    loss: Objective
    if mode == "full":
        optimizer = Optimizer(model.named_parameters(), wish)
        cast(model, torch.bfloat16)
        loss = NextToken(model, balance=0.0, z=0.0, chunk=options.chunk)
    else:
        targets = {"attention", "shared", *(["experts"] if mode == "experts" else [])}
        spec = Spec(rank=16, alpha=32, targets=frozenset(targets))  # type: ignore[arg-type]
        attach(model, begin(model.config, spec, torch.Generator().manual_seed(0)))
        optimizer = Optimizer(trained(model).items(), wish)
        loss = Supervised(model, options, recompute=False)
    ids = torch.randint(10, 500, (rows, row_len), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        ids=ids,
        positions=torch.arange(row_len).expand(rows, row_len).contiguous(),
        documents=torch.zeros_like(ids),
        targets=ids.roll(-1, 1),
        weights=torch.ones(rows, row_len),
        tiles=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        n_tiles=0,
        pieces=((0,),) * rows,
    )
    update, seconds = OneProcess(loss, optimizer, "cpu"), []
    for _ in range(n_steps + 1):
        began = time.perf_counter()
        update([batch], 1.0, lambda batch: [])
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:], "trained": sum(each.numel() for each in optimizer.parameters.values())}


if __name__ == "__main__":
    main()
