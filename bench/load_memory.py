"""How much memory and time loading a checkpoint takes, beside the size of its weights.

    python bench/load_memory.py [--gigabytes 4] [--shards 8] [--folder FOLDER] [--out FILE]

Makes a random checkpoint in each layout (Hugging Face's in several files, Meta's in --shards), loads each in a process
of its own and prints one JSON document. Peak memory is the kernel's own high-water mark of the resident set, taken
once before loading (interpreter and torch) and once after.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the weights")
    parser.add_argument("--shards", type=int, default=8, help="of Meta's layout; 1, 2, 4 or 8")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made; must not exist; is kept")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make is not None:
        make(chosen.make, chosen.gigabytes, chosen.shards)
    elif chosen.measure is not None:
        print(json.dumps(measure(chosen.measure)))
    elif chosen.folder is not None:
        report(chosen, chosen.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(chosen, Path(folder) / "checkpoints")


def report(chosen: argparse.Namespace, folder: Path) -> None:
    """Runs the steps as processes of their own: this one stays small, so that none inherits a high-water mark."""
    options = ["--gigabytes", str(chosen.gigabytes), "--shards", str(chosen.shards)]
    subprocess.run([sys.executable, __file__, *options, "--make", str(folder)], check=True)
    results = {}
    for layout in ("hf", "meta"):
        command = [sys.executable, __file__, "--measure", str(folder / layout)]
        results[layout] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    text = json.dumps(results, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")


def make(folder: Path, gigabytes: float, shards: int) -> None:
    """Writes Scout in small, as many layers as the size needs: 16 experts of 1024 x 2048 a layer, 0.21 GB."""
    from dataclasses import replace

    import torch

    from puna.model.transformer import Llama
    from puna.presets import SCOUT
    from puna.weights.checkpoint import convert, save_hf

    n_layers = max(1, round((gigabytes - 0.13) / 0.219))
    text = replace(
        SCOUT.text,
        width=1024,
        n_layers=n_layers,
        n_heads=8,
        n_kv_heads=8,
        vocab_size=32_768,
        rope_layers=frozenset(i for i in range(n_layers) if (i + 1) % 4),
        moe_layers=frozenset(range(n_layers)),
        expert_width=2048,
    )
    config = replace(SCOUT, text=text, vision=None, image_start_id=None, image_end_id=None, patch_id=None)
    with torch.device("meta"):
        model = Llama(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    noise = torch.randn(1 << 22).to(torch.bfloat16)  # the same again and again: what the numbers are changes nothing
    for parameter in model.parameters():
        for piece in parameter.data.view(-1).split(len(noise)):
            piece.copy_(noise[: len(piece)])
    save_hf(model, config, folder / "hf", max_file_bytes=int(gigabytes / 4 * 1e9))
    convert(folder / "hf", folder / "meta", "meta", shards)


def measure(path: Path) -> dict[str, Any]:
    """Loads a checkpoint and returns what that took."""
    from puna.weights.checkpoint import load

    before = peak_bytes()
    start = time.perf_counter()
    model = load(path)
    seconds = time.perf_counter() - start
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    peak = peak_bytes()
    return {
        "weights_bytes": n_bytes,
        "files": len(list(path.glob("*.safetensors"))) or len(list(path.glob("*.pth"))),
        "peak_rss_bytes": peak,
        "peak_rss_before_bytes": before,
        "peak_rss_over_weights": round(peak / n_bytes, 4),
        "added_rss_over_weights": round((peak - before) / n_bytes, 4),
        "seconds": round(seconds, 3),
    }


def peak_bytes() -> int:
    """Returns the most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


if __name__ == "__main__":
    main()
