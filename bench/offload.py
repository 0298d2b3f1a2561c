"""How fast a model answers with its experts on disk, by how many of them are cached, beside what the disk allows.

    python bench/offload.py [MODEL] [--quantize int4] [--shares 0.1 0.25 0.5] [--tokens 64] [--folder DIR] [--out FILE]

For each share of the experts, with and without foresight: tokens a second of one answer, how many of the experts asked
for were there or on their way, how many had been foreseen, bytes read for a token, and the floor: tokens a second if
nothing took time but reading these bytes at the rate at which the disk gave experts before and after. Prints a table
and one JSON document; temperature 1 and a fixed seed, so that a random model does not repeat itself.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cria", help="directory or hub id (default: cria)")
    parser.add_argument("--quantize", choices=("int4", "int8", "fp8"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="of experts cached")
    parser.add_argument("--tokens", type=int, default=64, help="made for each line")
    parser.add_argument("--prompt", default="Once upon a time there was a goat", help="what is continued")
    parser.add_argument("--folder", type=Path, help="where experts are kept; default: a folder that vanishes")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    chosen = parser.parse_args()
    logging.getLogger("puna.offload").setLevel(logging.ERROR)  # the table says more
    if chosen.folder is not None:
        report(chosen, chosen.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(chosen, Path(folder))


def report(chosen: argparse.Namespace, folder: Path) -> None:
    lines = [measure(chosen, folder, share, foresee=foresee) for share in chosen.shares for foresee in (True, False)]
    columns = tuple(lines[0])
    print("  ".join(columns))
    for line in lines:
        print("  ".join(f"{value:>{len(name)}.4g}" for name, value in line.items()))
    text = json.dumps({"model": chosen.model, "quantize": chosen.quantize, "lines": lines}, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")


def measure(chosen: argparse.Namespace, folder: Path, share: float, *, foresee: bool) -> dict[str, Any]:
    """Loads the model with room for a share of its experts and lets it answer once to warm up and once to be timed."""
    import puna
    from puna.offload.experts import OffloadedExperts

    n_bytes = cache_bytes(chosen, folder, share)
    llama = puna.load(
        chosen.model, quantize=chosen.quantize, offload="disk", offload_dir=folder, expert_cache_bytes=n_bytes
    )
    modules = [module for module in llama.model.modules() if isinstance(module, OffloadedExperts)]
    for module in modules:
        module.next_layer = module.next_layer if foresee else None
    cache = modules[0].cache
    rate = disk_rate(cache)
    llama.extend(chosen.prompt, temperature=1.0, seed=1, max_new_tokens=chosen.tokens)
    before, begin = cache.traffic, time.perf_counter()
    response = llama.extend(chosen.prompt, temperature=1.0, seed=2, max_new_tokens=chosen.tokens)
    seconds = time.perf_counter() - begin
    after, n_tokens = cache.traffic, response.usage.completion_tokens
    rate = (rate + disk_rate(cache)) / 2
    counts = [now - then for now, then in zip(after, before, strict=True)]
    traffic = type(after)(*counts)
    per_token = traffic.read_bytes / n_tokens
    line = {
        "share": share,
        "foresee": float(foresee),
        "tok_s": n_tokens / seconds,
        "hits": traffic.n_hits / traffic.n_asked,
        "late": traffic.n_late / traffic.n_asked,
        "foreseen": traffic.n_foreseen / traffic.n_guessed if traffic.n_guessed else 0.0,
        "given_up": float(traffic.n_given_up),
        "read_mb_token": per_token / 1e6,
        "disk_gb_s": rate / 1e9,
        "floor_tok_s": rate / per_token if per_token else float("inf"),
        "uncached_floor_tok_s": rate / (len(modules) * cache.store.record.n_bytes),
    }
    cache.close()
    return line


def cache_bytes(chosen: argparse.Namespace, folder: Path, share: float) -> int:
    """Returns the bytes of a share of all experts; the first time, this makes the store."""
    import puna
    from puna.offload.experts import OffloadedExperts

    llama = puna.load(chosen.model, quantize=chosen.quantize, offload="disk", offload_dir=folder)
    cache = next(module.cache for module in llama.model.modules() if isinstance(module, OffloadedExperts))
    cache.close()
    return max(1, round(share * len(cache.store.experts.all_keys()))) * cache.store.record.n_bytes


def disk_rate(cache: Any) -> float:
    """Returns bytes a second of reading experts one after the other, for half a second, while nothing else reads."""
    from puna.offload.store import pages

    room, n_read, begin = pages(cache.store.record.n_bytes), 0, time.perf_counter()
    keys = cache.store.experts.all_keys()
    while time.perf_counter() - begin < 0.5:
        cache.store.read(keys[n_read % len(keys)], room, lambda: False)
        n_read += 1
    return n_read * len(room) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
