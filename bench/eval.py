"""MMLU through puna's engine and through lm-evaluation-harness with transformers: same checkpoint, items and machine.

    python bench/eval.py DATA [--model cria] [--python PYTHON_OF_LM_EVAL] [--rounds 3] [--limit N] [--batches 1 8]

DATA has the folder `mmlu`. The harness's environment is made by `python -m tests.reference.referees`. Both get the very
same texts, five shots and a question, which the harness's own task makes too (`tests/reference/test_lm_eval.py`), and
say how probable each letter is. Each round runs every system once, in turn, a new process each: puna, lm-eval with one
batch size, with the next, puna ... Loading does not count. puna's time is that of the whole evaluation, from reading
the data to the report, with nothing remembered; the harness's that of its likelihoods alone. Of its batch sizes the
fastest counts. WANTED times its items a second are asked for, and the same answer to every item.

Prints a table, writes bench/results/eval-DATE-PROCESSOR.json and ends with 1 where scores differ.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from puna.bench import machine
from puna.chat import load
from puna.eval.local import LocalModel
from puna.eval.run import Settings, items_of, run_task, spread
from puna.eval.task import Choice
from puna.eval.tasks import TASKS
from puna.weights import hub

ROOT = Path(__file__).parents[1]
TASK = TASKS["mmlu"]
WANTED = 3.0
TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.25}  # sums in another order, over thousands of tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="cria", help="name, directory or hub id")
    parser.add_argument("--python", type=Path, default=ROOT / ".referees" / "bin" / "python", metavar="PYTHON")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE_NATS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="items, in turn from the subjects (default: all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="of the harness")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)  # one round of puna, in this process
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.ours:
        print(json.dumps(ours(chosen.model, chosen.data, chosen.limit, chosen.dtype)))
        return
    document = compare(chosen)
    processor = re.sub(r"[^a-z0-9]+", "-", document["machine"]["processor"].lower()).strip("-")
    out = chosen.out or ROOT / "bench" / "results" / f"eval-{document['date'].replace(':', '')}-{processor}.json"
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))
    sys.exit(0 if document["equal"] else 1)


def ours(name: str, data: Path, limit: int | None, dtype: str) -> dict[str, Any]:
    """Runs the task on a model that remembers nothing yet. Returns seconds and likelihoods."""
    model = LocalModel(load(name, dtype=dtype, device="cpu"))
    begin = time.perf_counter()
    report = run_task(TASK, model, data, Settings(limit=limit))
    seconds = time.perf_counter() - begin
    found = {each.item.id: list(each.details[0]["logprobs"]) for each in report.judged}
    return {"seconds": seconds, "logprobs": found, "score": report.score, "stderr": report.stderr}


def compare(chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds and returns the document."""
    items = spread(items_of(TASK, chosen.data), chosen.limit)
    date = datetime.datetime.now(datetime.UTC)
    peers = [f"lm-eval, batch {size}" for size in chosen.batches]
    seconds: dict[str, list[float]] = {name: [] for name in ("puna", *peers)}
    last: dict[str, dict[str, Any]] = {}
    before = machine.ticks()
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests.jsonl"
        prompts = [(item, TASK.prompt(item)) for item in items]
        rows = [
            {"id": item.id, "text": prompt.text, "continuations": prompt.continuations}
            for item, prompt in prompts
            if isinstance(prompt, Choice)
        ]
        requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for number in range(chosen.rounds):
            for name in seconds:
                last[name] = measured(name, chosen, requests)
                seconds[name].append(last[name]["seconds"])
                print(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer = min(peers, key=lambda name: medians[name])
    differences = [
        max(abs(a - b) for a, b in zip(mine, last[name]["logprobs"][id], strict=True))
        for name in peers
        for id, mine in last["puna"]["logprobs"].items()
    ]
    same = [
        best(mine) == best(last[name]["logprobs"][id])
        for name in peers
        for id, mine in last["puna"]["logprobs"].items()
    ]
    return {
        "date": f"{date:%Y-%m-%dT%H:%M}",
        "model": Path(chosen.model).name,
        "task": TASK.name,
        "n_items": len(items),
        "dtype": chosen.dtype,
        "machine": machine.describe(torch.device("cpu"))._asdict(),
        "disturbance": machine.disturbance(before, machine.ticks())._asdict(),
        "versions": last[peer]["versions"],
        "seconds": seconds,
        "items_per_second": {name: len(items) / value for name, value in medians.items()},
        "ratio": medians[peer] / medians["puna"],
        "wanted": WANTED,
        "score": last["puna"]["score"],
        "stderr": last["puna"]["stderr"],
        "largest_difference_nats": max(differences),
        "equal": all(same) and max(differences) < TOLERANCE_NATS[chosen.dtype],
    }


def best(logprobs: list[float]) -> int:
    return logprobs.index(max(logprobs))


def measured(name: str, chosen: argparse.Namespace, requests: Path) -> dict[str, Any]:
    """Runs one system once, in a process of its own. What it says besides its document is shown if it fails."""
    if name == "puna":
        command: list[object] = [sys.executable, __file__, chosen.data, "--ours", "--model", chosen.model]
        command += ["--threads", chosen.threads, *([] if chosen.limit is None else ["--limit", chosen.limit])]
    else:
        place = hub.resolve(chosen.model)
        command = [chosen.python, Path(__file__).with_name("peer_lm_eval.py"), place, requests]
        command += ["--batch", name.rpartition(" ")[2]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    command += ["--dtype", chosen.dtype]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def table(document: dict[str, Any]) -> str:
    lines = [f"{document['task']}, {document['n_items']} items, {document['model']} in {document['dtype']}"]
    for name, speed in document["items_per_second"].items():
        spread_of = ", ".join(f"{value:.2f}" for value in document["seconds"][name])
        lines.append(f"{name:20} {speed:8.2f} items/s   ({spread_of} s)")
    verdict = "the same answers" if document["equal"] else "DIFFERENT ANSWERS"
    lines.append(
        f"ratio {document['ratio']:.2f} (wanted {document['wanted']}), {verdict}, likelihoods at most "
        f"{document['largest_difference_nats']:.1e} nats apart, score {document['score']:.4f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
