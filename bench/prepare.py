"""How fast `puna prepare` goes, and how much memory it takes, on corpora of growing size made at random.

    python bench/prepare.py [--mb 10,100,1000] [--memory-mb 64] [--against PATH]

Documents are sentences of made-up words; of a hundred, one is a copy and one a copy with four words changed. Each size
runs in a process of its own, whose peak resident memory is what the system counted. Columns: megabytes of input,
documents, those equal to and like an earlier one, seconds, megabytes a second, peak megabytes. The random corpus is
written to a temporary folder and removed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    print(f"{'MB':>6}{'documents':>12}{'exact':>9}{'near':>9}{'seconds':>10}{'MB/s':>8}{'peak MB':>9}")
    for size in map(int, arguments.mb.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "corpus.jsonl")
            _write_corpus(corpus, size * 10**6)
            command = [sys.executable, __file__, "--child", folder, "--memory-mb", str(arguments.memory_mb)]
            command += ["--against", str(arguments.against)] if arguments.against else []
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            n = sum(row["all"].values())
            exact, near = (row["all"].get(reason, 0) for reason in ("exact", "near"))
            speed = size / row["seconds"]
            print(f"{size:6}{n:12,}{exact:9,}{near:9,}{row['seconds']:10.1f}{speed:8.2f}{row['peak_mb']:9.0f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", default="10,100,1000")
    parser.add_argument("--memory-mb", type=int, default=64)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(arguments: argparse.Namespace) -> None:
    from puna.train.prepare.run import Settings, prepare

    start = time.perf_counter()
    against = (arguments.against,) if arguments.against else ()
    settings = Settings(
        inputs=(arguments.child / "corpus.jsonl",),
        out=arguments.child / "out",
        against=against,
        memory_mb=arguments.memory_mb,
    )
    report = prepare(settings, lambda line: None)
    row = {
        "all": {reason: each["documents"] for reason, each in report["all"].items()},
        "seconds": time.perf_counter() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # Linux counts in KiB
    }
    print(json.dumps(row))


def _write_corpus(path: Path, size: int) -> None:
    draw = Random(4)
    vocabulary = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(30_000)]
    vocabulary += ["the", "of", "and", "to", "in", "is", "was", "that"] * 1500
    with path.open("w", encoding="utf-8") as file:
        earlier = draw.choices(vocabulary, k=300)
        while file.tell() < size:
            kind = draw.random()
            words = list(earlier) if kind < 0.02 else draw.choices(vocabulary, k=draw.randint(100, 500))
            if 0.01 <= kind < 0.02:
                for place in draw.sample(range(len(words)), 4):
                    words[place] = draw.choice(vocabulary)
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
            earlier = words if kind > 0.5 else earlier


if __name__ == "__main__":
    main()
