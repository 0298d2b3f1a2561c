"""A simulated training step beside the real one: two processes here, and a plan fed with what was just measured.

    python bench/simulated.py [--layouts one shard tensor ...] [--steps 4] [--out FILE]

A toy of Llama 4's shape is trained, with the update of `puna train`, by one process and, in each layout, by two with
one thread each; a step is the median of those behind the first. What a plan counts with is measured by the same
processes a moment before: products of the toy's shapes, memory's traffic, and each collective over gloo, bytes and
first byte. Nothing is fitted to the steps. Two idle cores and a minute and a half are needed.
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
from collections.abc import Callable, Iterator
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
PRODUCTS = ((512, 512, 512), (512, 512, 1024), (512, 512, 12_288), (64, 512, 2048), (64, 1024, 512))
"""Rows, inputs and outputs: maps of attention, shared expert and head, and of an expert with its share of rows."""

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
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rank_in:
        for found in measured(chosen.rank_in, chosen.layouts, chosen.steps):
            print(json.dumps(found), flush=True)
        return
    from puna.bench import machine

    before = machine.ticks()
    rates, rows = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, chosen.steps)
        alone = [layout for layout in chosen.layouts if layout == "one"]
        for n, layouts in ((1, alone), (2, [layout for layout in chosen.layouts if layout != "one"])):
            if not layouts:
                continue
            script = [str(Path(__file__)), "--rank-in", str(folder), "--steps", str(chosen.steps)]
            for line in launched(n, [*script, "--layouts", *layouts]):
                if "rates" in line:
                    rates[str(n)] = line["rates"]
                else:
                    rows[line["layout"]] = compared(folder, line["layout"], rates[str(n)], line["seconds"])
    record = {
        "rates": rates,
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


def launched(n: int, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Yields what the first of `n` ranks prints, each a process of one thread, told of the others as by torchrun."""
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
        out = None if rank else subprocess.PIPE
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=out or subprocess.DEVNULL, text=True))
    assert ranks[0].stdout is not None
    yield from (json.loads(line) for line in ranks[0].stdout)
    if any(each.wait() for each in ranks):
        raise SystemExit(f"a rank ended with {[each.returncode for each in ranks]}")


def compared(folder: Path, layout: str, rates: dict[str, Any], real: float) -> dict[str, float]:
    """Simulates a layout whose step took `real` seconds, and prints both."""
    planned = simulated(folder, LAYOUTS[layout], rates)
    print(f"{layout:18}real {real:6.2f} s, simulated {planned:6.2f} s, {planned / real - 1:+.0%}", flush=True)
    return {"real": real, "simulated": planned}


def simulated(folder: Path, layout: dict[str, Any], rates: dict[str, Any]) -> float:
    """Returns the seconds of a simulated step."""
    from puna.hardware import Hardware, Link
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
        read_bytes=rates["traffic"],
        flops=dict.fromkeys(("float32", "bfloat16"), rates["flops"]),
        watts=0.0,
        node=2,
        link_bytes=1.0,
        net_bytes=1.0,
        source="measured",
        is_cpu=True,
        collectives={kind: Link(*found) for kind, found in rates.get("collectives", {}).items()},
    )
    told = Training(**layout)
    shape = Shape(rows=ROWS, row_len=ROW_LEN, itemsize=4, chunk=CHUNK)
    config = architecture(str(folder / "toy.json"), "toy")
    job = Job(config=config, layout=told, shape=shape, accumulate=BATCHES, matrices="adamw")
    assumed = Assumed(multiply=1.0, read=1.0, link=1.0, imbalance=1.0, numbers="float32")
    return pipeline.simulated(Step(job, Cluster(hardware=hardware, count=told.world), assumed)).seconds


# What a rank does -----------------------------------------------------------------------------------------------------


def measured(folder: Path, layouts: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """Yields the rates that this rank reaches while the other does the same, then the seconds of each layout's step."""
    from puna.train import loop, recipe

    tables = {name: [f"parallel.{key}={json.dumps(value)}" for key, value in LAYOUTS[name].items()] for name in layouts}
    recipes = {name: recipe.read(folder / "recipe.toml", sets) for name, sets in tables.items()}
    first = recipes[layouts[0]]
    loop.settle(first)
    team = loop.Team.of(first, loop.model_config(first))
    yield {"rates": reached(is_alone=team.mesh is None)}
    for name, each in recipes.items():
        yield {"layout": name, "seconds": statistics.median(list(timed(each, folder, steps))[1:])}


def timed(told: Any, folder: Path, steps: int) -> Iterator[float]:
    """Yields the seconds of updates as `train.loop` makes them."""
    from puna.train import loop
    from puna.train.pack import PackedFeed

    config = loop.model_config(told)
    team = loop.Team.of(told, config)
    with team.first_alone():
        store = loop.tokenise(told.data.documents, told.data.tokenizer, None, told.data.store, lambda line: None)
    state, update = team.begin(told, config)
    feed = PackedFeed(loop.make_packer(store, config, told), store.digest)
    reader, readers = (0, 1) if team.mesh is None else (team.mesh.reader, team.mesh.layout.readers)
    with feed.opened(state.data, reader, readers) as batches:
        for _ in range(steps):
            own = [batches.next()[0] for _ in range(BATCHES // readers)]
            begin = time.perf_counter()
            update(own, 1.0, feed.names)
            yield time.perf_counter() - begin


def reached(*, is_alone: bool) -> dict[str, Any]:
    """Returns operations a second, bytes read and written a second, and of each collective what `plan.step` asks."""
    import torch
    import torch.distributed as dist

    flops = spent = 0.0
    for n, n_in, n_out in PRODUCTS:
        x, weight, by_out = torch.randn(n, n_in), torch.randn(n_out, n_in), torch.randn(n, n_out)
        for work in (lambda: x @ weight.T, lambda: by_out @ weight, lambda: by_out.T @ x):  # noqa: B023  called at once
            flops += 2.0 * n * n_in * n_out * 512 / n
            spent += seconds(work, 6, is_alone) * 512 / n
    terms = [torch.ones(2**24) for _ in range(3)]
    found: dict[str, Any] = {
        "flops": flops / spent,
        "traffic": 3 * terms[0].nbytes / seconds(lambda: torch.add(terms[0], terms[1], out=terms[2]), 6, is_alone),
    }
    if is_alone:
        return found
    own, whole, state, back = torch.ones(2**21), torch.ones(2**22), torch.ones(2**18), torch.ones(2**18)
    calls: dict[str, tuple[int, Callable[[slice, slice], object]]] = {
        "gather": (own.nbytes, lambda half, all_: dist.all_gather_into_tensor(whole[all_], own[half])),
        "reduce": (own.nbytes, lambda half, all_: dist.reduce_scatter_tensor(own[half], whole[all_])),
        "sum": (state.nbytes, lambda half, all_: dist.all_reduce(state[all_])),
        "exchange": (state.nbytes // 2, lambda half, all_: dist.all_to_all_single(back[all_], state[all_])),
    }
    found["collectives"] = {}
    for kind, (n_bytes, call) in calls.items():
        first = seconds(lambda: call(slice(16), slice(32)), 100, is_alone)  # noqa: B023
        rest = seconds(lambda: call(slice(None), slice(None)), 40, is_alone) - first  # noqa: B023
        found["collectives"][kind] = (n_bytes / max(rest, 1e-6), first)
    return found


def seconds(work: Callable[[], object], times: int, is_alone: bool) -> float:
    """Returns the mean seconds of so many repetitions, behind two that do not count, on the slower of the ranks: a step
    waits for the slow ones too."""
    import torch
    import torch.distributed as dist

    for _ in range(2):
        work()
    if not is_alone:
        dist.barrier()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    mean = torch.tensor((time.perf_counter() - begin) / times)
    if not is_alone:
        dist.all_reduce(mean, dist.ReduceOp.MAX)
    return float(mean)


if __name__ == "__main__":
    main()
