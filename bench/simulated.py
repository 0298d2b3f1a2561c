"""A simulated training step beside the real one: two processes here, and a plan fed with what was just measured.

    python bench/simulated.py [--layouts one shard tensor ...] [--steps 6] [--out FILE]

A toy of Llama 4's shape is trained by `puna train` on one process and, in each layout, on two with one thread each; a
step is the median of those behind the first two. What a plan counts with is measured by the same two processes at the
same time: products in the toy's shapes, memory read, and bytes over gloo. Nothing is fitted to the steps.
Two idle cores and a minute and a half are needed.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS, ROW_LEN, BATCHES, CHUNK = 1, 512, 2, 512
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "shard": {"shard": 2},
    "shard, recompute": {"shard": 2, "recompute": True},
    "experts": {"shard": 2, "expert": 2},
    "tensor": {"tensor": 2},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
}
RECIPE = """
[model]
preset = "{folder}/toy.json"
seed = 1
[data]
documents = "{folder}/texts.jsonl"
held_out = ""
tokenizer = "{root}/src/puna/assets/cria/tokenizer.json"
store = "{folder}/store"
seed = 1
[batch]
rows = {rows}
row_len = {row_len}
tiles = 0
window = 64
accumulate = {batches}
[optimizer]
lr = 1e-3
weight_decay = 0.1
momentum = 0.95
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
clip_norm = 1.0
matrices = "adamw"
[schedule]
steps = {steps}
warmup_steps = 1
decay_steps = 1
final_fraction = 0.1
[loss]
balance = 0.01
chunk = {chunk}
[compute]
dtype = "float32"
compile = false
threads = 1
[checkpoint]
every_steps = 0
every_seconds = 100000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rates:
        rates()
        return
    from puna.bench import machine

    before = machine.ticks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, chosen.steps)
        measured = json.loads(launched(2, [str(Path(__file__)), "--rates"]).splitlines()[-1])
        print(json.dumps(measured), flush=True)
        rows = {layout: compared(folder, layout, measured) for layout in chosen.layouts}
    record = {
        "rates": measured,
        "toy": toy(),
        "batch": [BATCHES, ROWS, ROW_LEN],
        "layouts": rows,
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def toy() -> dict[str, Any]:
    """Twelve million active parameters of 30: four layers, eight experts, chunks of half a row."""
    document: dict[str, Any] = json.loads((ROOT / "recipes" / "research-1b.json").read_text("utf-8"))
    return document | {
        "vocab_size": 12_288,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "intermediate_size_mlp": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_local_experts": 8,
        "moe_layers": [0, 1, 2, 3],
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        "attention_chunk_size": ROW_LEN // 2,
        "bos_token_id": 12_224,
        "eos_token_id": [12_225, 12_231, 12_232],
        "pad_token_id": 12_236,
    }


def prepare(folder: Path, steps: int) -> None:
    """Writes the toy, its recipe and texts: words of nothing, since steps take as long for any."""
    (folder / "toy.json").write_text(json.dumps(toy()), "utf-8")
    words = " ".join(f"word {n} of many" for n in range(120))
    line = json.dumps({"source": "words", "content": [{"type": "text", "text": words}]})
    (folder / "texts.jsonl").write_text((line + "\n") * 200, "utf-8")
    told = RECIPE.format(
        folder=folder, root=ROOT, rows=ROWS, row_len=ROW_LEN, batches=BATCHES, steps=steps, chunk=CHUNK
    )
    (folder / "recipe.toml").write_text(told, "utf-8")


def launched(n: int, arguments: list[str]) -> str:
    """Returns what the first of `n` ranks prints, each a process of one thread, told of the others as by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1"}
    if n > 1:
        shared |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(n),
            "LOCAL_WORLD_SIZE": str(n),
        }
    ranks = []
    for rank in range(n):
        own = os.environ | shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {})
        command = [sys.executable, *arguments]
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=None, text=True))
    said = [each.communicate()[0] for each in ranks]
    if any(each.returncode for each in ranks):
        raise SystemExit(f"a rank ended with {[each.returncode for each in ranks]}")
    return said[0]


def compared(folder: Path, layout: str, measured: dict[str, float]) -> dict[str, float]:
    """Trains in a layout, simulates it, and prints both."""
    tables = [f"parallel.{key}={json.dumps(value)}" for key, value in LAYOUTS[layout].items()]
    run = folder / layout
    changes = [word for table in tables for word in ("--set", table)]
    launched(2 if tables else 1, ["-m", "puna", "train", str(folder / "recipe.toml"), "--folder", str(run), *changes])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    real = statistics.median(line["seconds"] for line in lines[2:])
    planned, idle = simulated(folder, LAYOUTS[layout], measured)
    print(f"{layout:18} real {real:6.2f} s, simulated {planned:6.2f} s, {planned / real - 1:+.0%}", flush=True)
    return {"real": real, "simulated": planned, "idle": idle}


def simulated(folder: Path, layout: dict[str, Any], measured: dict[str, float]) -> tuple[float, float]:
    """Returns the seconds of a simulated step, and the share of them in which a stage waits for another."""
    from puna.hardware import Hardware
    from puna.plan import pipeline
    from puna.plan.activations import Shape
    from puna.plan.cluster import Cluster
    from puna.plan.shares import Training
    from puna.plan.step import Assumed, Step
    from puna.plan.training import Job
    from puna.train.architecture import architecture

    hardware = Hardware(
        name="one core",
        memory_bytes=10**10,
        read_bytes=measured["read_bytes"],
        flops=dict.fromkeys(("float32", "bfloat16"), measured["flops"]),
        watts=0.0,
        node=2,
        link_bytes=measured["link_bytes"],
        net_bytes=measured["link_bytes"],
        link_seconds=measured["link_seconds"],
        source="measured",
        is_cpu=True,
    )
    told = Training(**layout)
    shape = Shape(rows=ROWS, row_len=ROW_LEN, itemsize=4, chunk=CHUNK)
    config = architecture(str(folder / "toy.json"), "toy")
    job = Job(config=config, layout=told, shape=shape, accumulate=BATCHES, matrices="adamw")
    assumed = Assumed(multiply=1.0, read=1.0, link=1.0, imbalance=1.0, numbers="float32")
    found = pipeline.simulated(Step(job, Cluster(hardware=hardware, count=told.world), assumed))
    return found.seconds, found.idle


def rates() -> None:
    """Prints what each of two processes reaches while the other does the same: the slower one's."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows, large = torch.randn(ROWS * ROW_LEN, 512), torch.zeros(2**26)
    maps = torch.randn(512, 2048), torch.randn(2048, 512)
    own, every = torch.zeros(2**21), torch.zeros(2**22)
    small, smalls = torch.zeros(16), torch.zeros(32)
    found = {
        "flops": 2 * 2.0 * rows.numel() * 2048 / seconds(lambda: rows @ maps[0] @ maps[1], 20),
        "read_bytes": large.nbytes / seconds(lambda: large.sum(), 5),
        "link_bytes": own.nbytes / seconds(lambda: dist.all_gather_into_tensor(every, own), 8),
        "link_seconds": seconds(lambda: dist.all_gather_into_tensor(smalls, small), 50),
    }
    slowest = torch.tensor([1 / found[name] for name in found if name != "link_seconds"])
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        names = [name for name in found if name != "link_seconds"]
        print(json.dumps(found | dict(zip(names, (1 / slowest).tolist(), strict=True))))
    dist.destroy_process_group()


def seconds(work: Callable[[], object], times: int) -> float:
    """Returns the seconds of one of so many repetitions, behind two that do not count."""
    import torch.distributed as dist

    for _ in range(2):
        work()
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


if __name__ == "__main__":
    main()
