"""puna and the systems that people would take instead, on the same weights, in turn, in one sitting.

    python bench/peers.py CHECKPOINT --llama BIN_DIR --gguf bf16=FILE --gguf Q4_0=FILE --gguf Q4_K_M=FILE \
        --vllm PYTHON --preload TCMALLOC:LIBIOMP [--ready int4=DIR] [--only prefill decode_b1 ...] [--rounds 3]

puna's int4 is made while loading, each time anew, unless --ready names what `puna quantize` has made of the checkpoint,
or --cache-dir where puna may keep it.
Each round runs every system once, one after the other, each in a process of its own, two threads each: A B C A B C ...
Samples of all rounds together make the medians, and LINES says which ratios are wanted. `--only` takes names of cases
or beginnings of them, so that a sitting can be cut into pieces of minutes; a piece runs only the systems that its lines
compare. Beside every run stands what others took of the processors: nothing is started while something else runs.

llama.cpp is timed by its own llama-bench (flash attention on) and llama-batched-bench, vLLM by bench/peer_vllm.py. Load
is, for llama.cpp, its whole process up to one token; for puna, from the call of `load` to the first token, and
`start_s` beside it is the whole process too. Memory is the largest resident set of the process, vLLM's left out: it
works in processes that are not its own.

Writes bench/results/peers-DATE-PROCESSOR.json and prints a table. GGUF files are written by llama.cpp's own tools from
the very checkpoint.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.bench import machine

ROOT = Path(__file__).parents[1]
BUSY = 0.05  # share of the processors' time in others' hands from which on figures mean little
CASES = (
    "prefill_512",
    "prefill_2048",
    "decode_b1_ctx128",
    "decode_b1_ctx2048",
    "decode_b8_ctx128",
    "decode_b16_ctx128",
)
MEMORY = "peak_rss_gib"
MEMORY_CASES = ("prefill_2048", "decode_b1_ctx2048")  # what every system has done when its memory is compared


class Line(NamedTuple):
    """A wanted ratio: puna's median over that of its best peer, at least `wanted` or, where less is better, at most."""

    metric: str
    ours: str
    peers: tuple[str, ...]
    wanted: float
    less: bool = False


_FOUR_BITS = ("llama.cpp Q4_0", "llama.cpp Q4_K_M")
LINES = (
    Line("prefill_512_tok_s", "puna", ("vllm",), 1.1),
    Line("prefill_2048_tok_s", "puna", ("vllm",), 1.1),
    Line("decode_b1_ctx128_tok_s", "puna", ("llama.cpp bf16",), 1.0),
    Line("decode_b1_ctx2048_tok_s", "puna", ("llama.cpp bf16",), 1.3),
    Line("decode_b1_ctx128_tok_s", "puna int4", _FOUR_BITS, 1.2),
    Line("decode_b1_ctx2048_tok_s", "puna int4", _FOUR_BITS, 2.0),
    Line("decode_b8_ctx128_tok_s", "puna int4", ("llama.cpp Q4_0",), 1.3),
    Line("decode_b16_ctx128_tok_s", "puna int4", ("llama.cpp Q4_0",), 1.3),
    Line("load_s", "puna", (), 3.0, less=True),
    Line("load_s", "puna int4", (), 3.0, less=True),
    Line(MEMORY, "puna", ("llama.cpp bf16",), 1.25, less=True),
    Line(MEMORY, "puna int4", ("llama.cpp Q4_0",), 1.25, less=True),
)


class Run(NamedTuple):
    """One process of one system in one round: its samples by metric, and who else was there."""

    system: str
    round: int
    samples: dict[str, list[float]]
    seconds: float
    disturbance: machine.Disturbance
    versions: dict[str, str]
    limits: dict[str, float]  # what memory and matrix products reached, where puna measured it
    floors: dict[str, float]  # by metric, likewise


def main() -> None:
    chosen = _arguments()
    lines = [line for line in LINES if _is_chosen(line.metric, chosen.only) and _is_installed(line, chosen)]
    systems = tuple(dict.fromkeys(name for line in lines for name in (line.ours, *line.peers)))
    if chosen.systems:
        systems = tuple(name for name in systems if name in chosen.systems)
    if not systems:
        raise SystemExit("nothing to run: name cases with --only, and peers with --llama, --gguf and --vllm")
    if not chosen.anyway and (busy := _others_now()) > BUSY:
        raise SystemExit(f"others use {busy:.0%} of the processors: wait until they are done, or say --anyway")
    runs: list[Run] = []
    begin = datetime.datetime.now(datetime.UTC)
    try:
        for number in range(chosen.rounds):
            for system in systems:
                cases = [case for case in CASES if any(_needs(line, system, case) for line in lines)]
                try:
                    runs.append(_run(system, number, cases, chosen))
                    _tell(runs[-1])
                except ProcessError as error:  # the others are measured all the same
                    print(f"round {number + 1}, {system}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    if runs:
        document = _document(chosen, lines, runs, begin)
        out = chosen.out or ROOT / "bench" / "results" / f"peers-{begin:%Y-%m-%dT%H%M}-{_slug(document)}.json"
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(_table(document, systems))
        print(f"\n{out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of the weights that all systems run")
    parser.add_argument("--llama", type=Path, metavar="DIR", help="llama.cpp's programs")
    parser.add_argument("--gguf", action="append", default=[], metavar="NAME=FILE", help="bf16, Q4_0 or Q4_K_M")
    parser.add_argument("--cache-dir", metavar="DIR", help="puna keeps its models there as they run, and loads them so")
    parser.add_argument(
        "--ready", action="append", default=[], metavar="FORMAT=DIR", help="what `puna quantize` made, such as int4=DIR"
    )
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the interpreter that has vLLM")
    parser.add_argument("--preload", default="", metavar="LIB:LIB", help="what vLLM wants loaded: tcmalloc and libiomp")
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", help="such as prefill, decode_b1_ctx2048, load (default: all)"
    )
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="of those that the cases need, only these")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes of each system (default 3)")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="samples of a case in each process (default 3)"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each system (default 2)")
    parser.add_argument("--anyway", action="store_true", help="also while others use the processors")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the document goes")
    chosen = parser.parse_args()
    chosen.gguf = {name: Path(file) for name, _, file in (each.partition("=") for each in chosen.gguf)}
    chosen.ready = dict(each.split("=", 1) for each in chosen.ready)
    return chosen


def _is_chosen(metric: str, only: Sequence[str] | None) -> bool:
    return only is None or any(metric == name or metric.startswith(f"{name}_") for name in only)


def _is_installed(line: Line, chosen: argparse.Namespace) -> bool:
    """Says whether all systems of a line were named on the command line."""
    here = {f"llama.cpp {name}" for name in chosen.gguf} if chosen.llama else set()
    return set(line.peers) <= here | ({"vllm"} if chosen.vllm else set())


def _needs(line: Line, system: str, case: str) -> bool:
    """Says whether a system runs a case for a line."""
    wanted = MEMORY_CASES if line.metric == MEMORY else (line.metric.removesuffix("_tok_s"),)
    return system in (line.ours, *line.peers) and case in wanted


# Running ----------------------------------------------------------------------------------------------------------


def _run(system: str, number: int, cases: Sequence[str], chosen: argparse.Namespace) -> Run:
    """Runs one system once. Its standard error is shown when it fails."""
    peer, _, form = system.partition(" ")
    before, begin = machine.ticks(), time.perf_counter()
    measured = {"puna": _puna, "llama.cpp": _llama, "vllm": _vllm}[peer](form, cases, chosen)
    return Run(
        system=system,
        round=number,
        samples=measured["samples"],
        seconds=time.perf_counter() - begin,
        disturbance=machine.disturbance(before, machine.ticks()),
        versions=measured.get("versions", {}),
        limits=measured.get("limits", {}),
        floors=measured.get("floors", {}),
    )


def _puna(form: str, cases: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    folder = chosen.ready.get(form, chosen.checkpoint)
    quantize = ["--quantize", form] if form and form not in chosen.ready else []
    quantize += ["--cache-dir", chosen.cache_dir] if chosen.cache_dir else []
    command = [sys.executable, "-m", "puna", "bench", folder, "--json", "--runs", str(chosen.runs)]
    said = _process([*command, *quantize, "--device", "cpu", "--only", *cases], chosen)
    document: dict[str, Any] = json.loads(said.text)
    if _is_chosen("load_s", chosen.only):
        one = ["complete", "a", "--model", folder, "--max-new-tokens", "1", "--device", "cpu"]
        document["samples"]["start_s"] = [_process([sys.executable, "-m", "puna", *one, *quantize], chosen).seconds]
    return document


def _llama(form: str, cases: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    common = ["-m", chosen.gguf[form], "-t", str(chosen.threads), "-fa", "1"]
    bench = [chosen.llama / "llama-bench", *common, "-o", "json"]
    samples: dict[str, list[float]] = {}
    peaks: list[float] = []
    builds: set[str] = set()

    def rows(*more: str) -> list[dict[str, Any]]:
        said = _process([*bench, *more], chosen)
        peaks.append(said.peak_gib)
        found: list[dict[str, Any]] = json.loads(said.text)
        builds.update(row["build_commit"] for row in found)
        samples.setdefault("load_s", [said.seconds])  # of the first process, which makes one token
        return found

    rows("-p", "0", "-n", "1", "-r", "1", "--no-warmup")
    repeated = ["-r", str(chosen.runs)]
    for kind, flag, steps in (("prefill_", "-p", []), ("decode_b1_ctx", "-d", ["-p", "0", "-n", "32"])):
        sizes = [case.removeprefix(kind) for case in cases if case.startswith(kind)]
        if sizes:
            fixed = steps or ["-n", "0", "-ub", "512"]
            for row in rows(*repeated, *fixed, flag, ",".join(sizes)):
                size = row["n_prompt"] if kind == "prefill_" else row["n_depth"]
                samples[f"{kind}{size}_tok_s"] = row["samples_ts"]
    batches = [found[1] for case in cases if (found := re.fullmatch(r"decode_b(\d+)_ctx128", case)) and found[1] != "1"]
    for _ in range(chosen.runs if batches else 0):
        shape = ["-c", "4096", "-npp", "128", "-ntg", "32", "-npl", ",".join(batches), "--output-format", "jsonl"]
        said = _process([chosen.llama / "llama-batched-bench", *common, *shape], chosen)
        peaks.append(said.peak_gib)
        for row in (json.loads(line) for line in said.text.splitlines() if line.startswith("{")):
            samples.setdefault(f"decode_b{row['pl']}_ctx128_tok_s", []).append(row["speed_tg"])
    samples[MEMORY] = [max(peaks)]
    return {"samples": samples, "versions": {"llama.cpp": " ".join(sorted(builds))}}


def _vllm(form: str, cases: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    here = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{chosen.threads - 1}",
        "LD_PRELOAD": chosen.preload,
    }
    command = [chosen.vllm, Path(__file__).with_name("peer_vllm.py"), chosen.checkpoint, *cases]
    said = _process([*command, "--runs", str(chosen.runs)], chosen, here)
    document: dict[str, Any] = json.loads(next(line for line in said.text.splitlines() if line.startswith('{"peer"')))
    return document


class ProcessError(Exception):
    """A system did not run to its end."""


class Said(NamedTuple):
    """What a process wrote, how long it ran, and its largest resident set."""

    text: str
    seconds: float
    peak_gib: float


def _process(command: Sequence[object], chosen: argparse.Namespace, more: dict[str, str] | None = None) -> Said:
    """Runs a program to its end. Raises ProcessError with the end of what it complained of when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(chosen.threads)} | (more or {})
    with tempfile.TemporaryFile("w+") as written, tempfile.TemporaryFile("w+") as complaints:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=complaints,
            env=environment,
            cwd=ROOT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        written.seek(0)
        complaints.seek(0)
        if process.returncode:
            ended = f"{' '.join(map(str, command))}\nended with {process.returncode}"
            raise ProcessError(f"{ended}\n{complaints.read()[-3000:]}")
        return Said(written.read(), seconds, usage.ru_maxrss / 2**20)


def _others_now(seconds: float = 2.0) -> float:
    """Returns the share of the processors' time that others use just now."""
    before = machine.ticks()
    time.sleep(seconds)
    return machine.disturbance(before, machine.ticks()).others_share or 0.0


# Reporting --------------------------------------------------------------------------------------------------------


def _tell(run: Run) -> None:
    """Says on standard error what a run found and, if others were there, that it means little."""
    values = ", ".join(f"{name} {statistics.median(values):.4g}" for name, values in run.samples.items())
    print(f"round {run.round + 1}, {run.system}, {run.seconds:.0f} s: {values}", file=sys.stderr, flush=True)
    steal, others = run.disturbance.steal_share or 0.0, run.disturbance.others_share or 0.0
    if steal > BUSY or (others > BUSY and run.system != "vllm"):  # vLLM's own workers look like others
        print(f"  disturbed: steal {steal:.1%}, other programs {others:.1%}", file=sys.stderr, flush=True)


def _document(
    chosen: argparse.Namespace, lines: Sequence[Line], runs: Sequence[Run], begin: datetime.datetime
) -> dict[str, Any]:
    samples: dict[str, dict[str, list[float]]] = {}
    floors: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, values in run.samples.items():
            samples.setdefault(run.system, {}).setdefault(metric, []).extend(values)
        for metric, floor in run.floors.items():
            floors.setdefault(run.system, {}).setdefault(metric, []).append(floor)
    medians = {
        system: {metric: statistics.median(values) for metric, values in metrics.items()}
        for system, metrics in samples.items()
    }
    return {
        "date": f"{begin:%Y-%m-%dT%H:%M}Z",
        "checkpoint": Path(chosen.checkpoint).name,
        "machine": machine.describe(torch.device("cpu"))._asdict() | {"n_threads": chosen.threads},
        "versions": {name: version for run in runs for name, version in run.versions.items()},
        "rounds": chosen.rounds,
        "runs": chosen.runs,
        "medians": medians,
        "floors": {
            system: {metric: statistics.median(values) for metric, values in metrics.items()}
            for system, metrics in floors.items()
        },
        "lines": [found for line in lines if (found := _judge(line, medians)) is not None],
        "processes": [run._asdict() | {"disturbance": run.disturbance._asdict()} for run in runs],
    }


def _judge(line: Line, medians: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """Returns what came of a line, or None where a sitting was stopped before it was measured."""
    ours = medians.get(line.ours, {}).get(line.metric)
    peers = {name: medians[name][line.metric] for name in line.peers if line.metric in medians.get(name, {})}
    if ours is None or len(peers) < len(line.peers):
        return None
    best = (min if line.less else max)(peers, key=lambda name: peers[name], default=None)
    ratio = ours if best is None else ours / peers[best]
    return {
        "metric": line.metric,
        "system": line.ours,
        "value": ours,
        "peer": best,
        "peer_value": None if best is None else peers[best],
        "ratio": ratio,
        "wanted": line.wanted,
        "holds": ratio <= line.wanted if line.less else ratio >= line.wanted,
    }


def _table(document: dict[str, Any], systems: Sequence[str]) -> str:
    """Returns medians by system and metric, then the lines."""
    medians, floors = document["medians"], document["floors"]
    metrics = dict.fromkeys(metric for system in systems for metric in medians.get(system, {}))
    rows = ["medians".ljust(26) + "".join(f"{system:>19}" for system in systems)]
    for metric in metrics:
        cells = []
        for system in systems:
            value, floor = medians.get(system, {}).get(metric), floors.get(system, {}).get(metric)
            share = f" ({value / floor:.0%})" if value and floor and metric.endswith("_tok_s") else ""
            cells.append("" if value is None else f"{value:.4g}{share}")
        rows.append(metric.ljust(26) + "".join(f"{cell:>19}" for cell in cells))
    rows += ["(shares of the floor of the same sitting)", ""]
    for line in document["lines"]:
        against = f"x {line['peer']}" if line["peer"] else "s"
        bound = "at most" if line["metric"] in ("load_s", MEMORY) else "at least"
        verdict = "holds" if line["holds"] else "MISSED"
        found = f"{line['ratio']:.3f} {against}, {bound} {line['wanted']}"
        rows.append(f"{verdict:7} {line['metric']:24} {line['system']:10} {found}")
    return "\n".join(rows)


def _slug(document: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", document["machine"]["processor"].lower()).strip("-")


if __name__ == "__main__":
    main()
