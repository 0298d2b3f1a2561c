"""How far puna's small numbers and llama.cpp's drift from the full model, on the same token ids.

    python bench/drift_llamacpp.py CHECKPOINT TEXT --llama BIN_DIR --gguf bf16=FILE --gguf Q4_0=FILE [--gguf NAME=FILE]
        [--quantize int4 int8 fp8] [--window 512] [--windows 16] [--out FILE]

llama.cpp's own llama-perplexity reads TEXT with the bf16 file, keeps ids and probabilities, and compares each other
file with them. puna reads the very ids from what it kept: its full model runs in float32, its small ones as a user gets
them, and "as stored" shows what bfloat16 alone costs. As there, the second half of each window counts.

llama.cpp has Llama 4's constants built in: chunks of 8192, global layers every fourth, query temperature from 8192 on.
A model with others, such as cria (chunks of 128), is the same function only while a window fits into the smaller chunk:
--window 128 for cria. Its Q4_0 keeps the head in more bits (Q6_K or Q8_0) unless made with `llama-quantize --pure`.
"""

import argparse
import gc
import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.chat import Assistant, load
from puna.quant.drift import drift

_LABELS = {
    "divergence": r"Mean\s+KLD:\s+([-\d.]+)",
    "divergence_error": r"Mean\s+KLD:\s+[-\d.]+ ±\s+([-\d.]+)",
    "agreement": r"Same top p:\s+([\d.]+)",
    "perplexity_full": r"Mean PPL\(base\)\s+:\s+([\d.]+)",
    "perplexity_small": r"Mean PPL\(Q\)\s+:\s+([\d.]+)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="name or folder of the weights that the files were made from")
    parser.add_argument("text", type=Path, help="a file of plain text")
    parser.add_argument("--llama", type=Path, required=True, metavar="DIR", help="llama.cpp's programs")
    parser.add_argument(
        "--gguf", action="append", required=True, metavar="NAME=FILE", help="bf16 is what others drift from"
    )
    parser.add_argument(
        "--quantize", nargs="*", default=["int4"], metavar="FORMAT", help="puna's formats (default int4)"
    )
    parser.add_argument("--window", type=int, default=512, metavar="N", help="ids that are read together (default 512)")
    parser.add_argument("--windows", type=int, default=16, metavar="N", help="at most (default 16)")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    chosen = parser.parse_args()
    files = dict(each.split("=", 1) for each in chosen.gguf)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        length = str(chosen.window)
        common = [chosen.llama / "llama-perplexity", "-c", length, "-b", length, "--kl-divergence-base", base]
        _run([*common, "-m", files.pop("bf16"), "-f", chosen.text, "--chunks", chosen.windows])
        for name, file in files.items():
            results[f"llama.cpp {name}"] = _compare([*common, "-m", file, "--kl-divergence"])
            _show(name, results[f"llama.cpp {name}"])
        windows = _ids(base)
    results |= _puna(chosen.checkpoint, windows, chosen.quantize)
    document = {
        "checkpoint": Path(chosen.checkpoint).name,
        "text": chosen.text.name,
        "window": chosen.window,
        "n_windows": len(windows),
        "results": results,
    }
    print(json.dumps(document, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _run(command: Sequence[object]) -> str:
    said = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if said.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{said.stderr[-2000:]}")
    return said.stdout + said.stderr


def _compare(command: Sequence[object]) -> dict[str, float]:
    """Returns the figures that llama-perplexity prints, under the names that ours have.

    It prints from a thread of its own, and on a busy machine it may end before its last lines are out: then again.
    """
    text = ""
    for _ in range(3):
        text = _run(command)
        found = {name: re.search(pattern, text) for name, pattern in _LABELS.items()}
        figures = {name: float(match[1]) for name, match in found.items() if match is not None}
        if len(figures) == len(_LABELS):
            return figures | {"agreement": figures["agreement"] / 100}
    raise SystemExit(f"llama-perplexity printed no results:\n{text[-2000:]}")


def _ids(base: Path) -> list[list[int]]:
    """Returns the windows of ids that llama-perplexity kept, before the probabilities. Source: its perplexity.cpp."""
    with base.open("rb") as file:
        mark, length, _, n_windows = struct.unpack("<8sIii", file.read(20))
        assert mark == b"_logits_", f"{base} is no file of llama-perplexity"
        ids = struct.unpack(f"<{length * n_windows}i", file.read(4 * length * n_windows))
    return [list(ids[start : start + length]) for start in range(0, len(ids), length)]


def _puna(checkpoint: str, windows: Sequence[list[int]], formats: Sequence[str]) -> dict[str, Any]:
    """Returns the drift of each format. Full logits of the halves that count are held: n_windows * window / 2 * V."""
    full = load(checkpoint, dtype="float32", device="cpu")
    windows = [[full.config.bos_id, *ids[1:]] for ids in windows]  # llama-perplexity begins each window so
    kept = _logits(full, windows)
    del full
    results = {}
    for name in (None, *formats):
        gc.collect()
        small = _logits(load(checkpoint, quantize=name, device="cpu"), windows)  # type: ignore[arg-type]
        label = f"puna {name or 'as stored'}"
        results[label] = drift(_known(kept, windows), _known(small, windows), _tails(windows))._asdict()
        _show(label, results[label])
    return results


def _logits(assistant: Assistant, windows: Sequence[list[int]]) -> list[Tensor]:
    """Returns logits [window/2 V] behind the second half of each window, without its last id."""
    return [assistant.logits(ids)[len(ids) // 2 :] for ids in windows]


def _tails(windows: Sequence[list[int]]) -> list[tuple[int, ...]]:
    return [tuple(ids[len(ids) // 2 :]) for ids in windows]


def _known(logits: Sequence[Tensor], windows: Sequence[list[int]]) -> Callable[[Sequence[int]], Tensor]:
    """Returns a function from the second half of a window to its logits."""
    table = dict(zip(_tails(windows), logits, strict=True))
    return lambda tail: table[tuple(tail)]


def _show(name: str, figures: dict[str, float]) -> None:
    print(
        f"{name:24} {figures['divergence']:9.6f} +- {figures['divergence_error']:.6f} nats, same choice "
        f"{figures['agreement']:.3%}, perplexity {figures['perplexity_full']:.4f} -> {figures['perplexity_small']:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
