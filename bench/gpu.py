"""puna on one NVIDIA GPU: are the kernels right, how fast are they, and how near its bandwidth does a whole Scout run.

    PYTHONPATH=src python bench/gpu.py                        all of it: about ten minutes on an H100
    PYTHONPATH=src python bench/gpu.py --only checks          every kernel against its plain twin, at real sizes
    PYTHONPATH=src python bench/gpu.py --only kernels --sweep each kernel's time, and int4's with other tiles
    PYTHONPATH=src python bench/gpu.py --only model --layers 8 --batches 1 64

`model` builds a full-size Scout of random weights on the device, made int4 one parameter at a time by the same code
that loads a checkpoint, and times decoding (graphs replayed, each step's token chosen and read before the next
begins), prefill, and memory with one context of 128k. A floor is the bytes that a step must read over the bandwidth
measured in this very run, or its operations over the matrix rate measured, whichever is longer. Published figures of
other systems are printed beside, with the hardware they were taken on: they are no measurement of ours.

Writes bench/results/gpu-DATE-NAME.json. Ends with code 2 and one line where there is no GPU.
"""

import argparse
import datetime
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.engine.batch import Batch, Entry
from puna.engine.cache import KVCache, kv_dtype, share_out
from puna.model.transformer import Llama
from puna.presets import PRESETS
from puna.quant.swap import Policy, placer

RESULTS = Path(__file__).parent / "results"
CONTEXT = 131_072
MAX_SEQUENCES = 256
RESERVE_BYTES = 3 * 2**30  # for what a step needs besides weights and cache

# system, model and numbers, hardware, figure, source. In a row of ours stands what was measured in this run alone.
PUBLISHED = (
    ("TensorRT-LLM", "Scout FP4", "1x B200", "25342 tok/s out at 128/128; 10591 at 1000/1000", "perf-overview v1.0"),
    ("TensorRT-LLM", "Scout FP8", "4x H200", "30354 tok/s at 128/128; 21636 at 1000/1000", "perf-overview v1.0"),
    ("TensorRT-LLM", "Scout FP8", "4x H100", "12129 tok/s at 1000/1000; 7972 at 2048/2048", "perf-overview v1.0"),
    ("TensorRT-LLM", "Maverick FP8 + EAGLE3", "8x B200", "over 1000 tok/s for one user", "NVIDIA blog, May 2025"),
    ("vLLM", "Maverick FP8", "8x MI300X", "127.7 tok/s for one user (7.66 ms)", "vllm-project/vllm#46553"),
    ("vLLM", "Scout BF16", "8x H100", "about 1850 tok/s at batch 16 (weak source)", "evokernel-specs"),
    ("SGLang", "Scout", "8x H200", "2.5M tokens of context; 10M with hybrid KV", "sglang docs/basic_usage/llama4.md"),
    ("MLX (exo)", "Scout 4-bit", "1x M3 Ultra", "46.7 tok/s", "exo-explore/exo#1780"),
)


def main() -> int:
    """Runs what the arguments ask for. Returns the exit code."""
    arguments = parse()
    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; run this where there is an NVIDIA GPU", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    only = set(arguments.only or ("checks", "kernels", "model"))
    found: dict[str, Any] = {"device": machine(), "ceilings": ceilings()}
    print(json.dumps(found, indent=1))
    if "checks" in only:
        from gpu_checks import checks

        found["checks"] = list(checks())
        table(found["checks"], ("kernel", "error", "bound", "ok"))
    if "kernels" in only:
        from gpu_kernels import kernels, sweep

        found["kernels"] = list(kernels(found["ceilings"]["read_bytes_per_second"]))
        table(found["kernels"], ("kernel", "microseconds", "share_of_bandwidth"))
        if arguments.sweep:
            found["sweep"] = list(sweep())
            table(found["sweep"], ("kernel", "tile", "microseconds"))
    if "model" in only:
        found["model"] = whole_model(arguments, found["ceilings"])
        print(json.dumps(found["model"], indent=1))
        table(
            [dict(zip(("system", "model", "hardware", "figure", "source"), row, strict=True)) for row in PUBLISHED],
            ("system", "model", "hardware", "figure"),
        )
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", found["device"]["name"]).strip("-")
    path = (arguments.out or RESULTS) / f"gpu-{datetime.date.today()}-{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    wrong = [check["kernel"] for check in found.get("checks", []) if not check["ok"]]
    if wrong:
        print(f"gpu.py: these kernels differ from their plain twins: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["checks", "kernels", "model"])
    parser.add_argument("--sweep", action="store_true", help="also time int4's kernels with other tiles")
    parser.add_argument("--model", default="scout", choices=sorted(PRESETS))
    parser.add_argument("--layers", type=int, help="only the first so many layers: a quick look, no result")
    parser.add_argument("--quantize", default="int4", choices=["int4", "int8", "fp8", "none"])
    parser.add_argument("--kv", default="bfloat16", choices=["bfloat16", "int8", "fp8"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=24, help="decoding steps that are timed")
    parser.add_argument("--out", type=Path, help="folder of the JSON file instead of bench/results")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Returns what the figures belong to."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": str(datetime.date.today()),
    }


def ceilings() -> dict[str, float]:
    """Returns what the GPU does at best: bytes read and copied a second, bfloat16 operations a second."""
    big = torch.randn(2**31, device="cuda", dtype=torch.bfloat16)  # 4 GiB
    copy = torch.empty_like(big)
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return {
        "read_bytes_per_second": big.nbytes / seconds(lambda: big.view(torch.int32).amax()),
        "copy_bytes_per_second": 2 * big.nbytes / seconds(lambda: copy.copy_(big)),
        "bfloat16_operations_per_second": 2 * 8192**3 / seconds(lambda: a @ b),
    }


def seconds(work: Callable[[], object], n: int = 20) -> float:
    """Returns the median time of `work` on the device after three runs that do not count."""
    times = []
    for i in range(n + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


def whole_model(arguments: argparse.Namespace, ceiling: dict[str, float]) -> dict[str, Any]:
    """Builds the model, then times everything that is asked for."""
    from puna.engine.cuda_graphs import GraphRunner

    config = PRESETS[arguments.model]
    if arguments.layers:
        config = first_layers(config, arguments.layers)
    begun = time.perf_counter()
    model = random_model(config, None if arguments.quantize == "none" else arguments.quantize, torch.device("cuda"))
    torch.cuda.synchronize()
    found: dict[str, Any] = {
        "model": arguments.model,
        "layers": config.text.n_layers,
        "quantize": arguments.quantize,
        "kv": arguments.kv,
        "build_seconds": time.perf_counter() - begun,
        "weight_bytes": torch.cuda.memory_allocated(),
        "build_peak_bytes": torch.cuda.max_memory_allocated(),
    }
    print(json.dumps(found), flush=True)
    dtype = kv_dtype(arguments.kv, torch.bfloat16)
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    counts = share_out(config.text, dtype, free - RESERVE_BYTES, MAX_SEQUENCES)
    cache = KVCache(config.text, counts, dtype=dtype, device=torch.device("cuda"))
    fill(cache)
    runner = GraphRunner(model, cache)
    found["kv_bytes"] = cache.n_bytes
    found["decode"] = []
    for n_rows in arguments.batches:
        for context in (128, 1024, 8192, CONTEXT - 64) if n_rows == 1 else (128, 1024):
            figure = decode(runner, cache, n_rows, context, arguments.steps)
            if figure is None:
                print(f"decode batch {n_rows} context {context}: does not fit the cache", flush=True)
                continue
            floor = decode_floor(model, cache, n_rows, context, ceiling)
            figure |= {"floor_tok_s": n_rows / floor, "share_of_floor": figure["tok_s"] * floor / n_rows}
            found["decode"].append(figure)
            print(json.dumps(figure), flush=True)
    found["prefill"] = [prefill(runner, cache, n, ceiling, model) for n in (512, 2048, 8192)]
    found["sampling_microseconds"] = sampling(config.text.vocab_size)
    found["steps"] = dict(runner.steps)
    found["peak_bytes"] = torch.cuda.max_memory_allocated()
    found["peak_is_under_80_GB_with_128k"] = found["peak_bytes"] < 80e9
    return found


def first_layers(config: LlamaConfig, n: int) -> LlamaConfig:
    """Returns a configuration of the first `n` layers."""
    text = config.text
    kept = set(range(n))
    return replace(
        config, text=replace(text, n_layers=n, rope_layers=text.rope_layers & kept, moe_layers=text.moe_layers & kept)
    )


def random_model(config: LlamaConfig, quantize: Any, device: torch.device) -> Llama:
    """Returns a model of random bfloat16 weights, each made small as it comes, as loading a checkpoint does."""
    with torch.device("meta"):
        model = Llama(config)
    place = placer(None if quantize is None else Policy(to=quantize), arrange=lambda weight: weight)
    for name, parameter in list(model.named_parameters()):
        if parameter.dim() < 2:
            weight = torch.full(parameter.shape, float(name.endswith("weight")), dtype=torch.bfloat16, device=device)
        else:
            weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            weight.normal_(std=parameter.shape[-1] ** -0.5)
        place(model, name, weight)
        del weight
    return model.eval().requires_grad_(False)


def fill(cache: KVCache) -> None:
    """Gives every slot a key and a value: the numbers do not matter, but zeros would be too easy."""
    for part in (*cache.keys, *cache.values):
        if part.dtype.itemsize > 1:
            part.normal_()
        else:
            part.view(torch.uint8).random_(0, 0x70)
    for scales in (*cache.key_scales, *cache.value_scales):
        if scales is not None:
            scales.fill_(0.01)


def entries(cache: KVCache, n_rows: int, context: int, n_new: int, room: int) -> list[Entry] | None:
    """Returns `n_rows` sequences that have read `context` tokens, with blocks for `room` more; None: too many."""
    layout = cache.layout
    base = layout.chunk_base(context)
    n_global = -(-(context + room) // layout.block_len) if layout.has_global else 0
    n_chunked = 0 if layout.chunk_len is None else -(-(context + room - base) // layout.block_len)
    if n_rows * n_global > cache.counts.n_global or n_rows * n_chunked > cache.counts.n_chunked:
        return None
    return [
        Entry(
            n_new,
            context,
            range(i * n_global, (i + 1) * n_global),
            range(i * n_chunked, (i + 1) * n_chunked),
            base,
        )
        for i in range(n_rows)
    ]


def batch_of(pieces: list[Entry], ids: Tensor) -> Batch:
    """Returns the batch in which all entries read `ids` int64 [T]; the last row of each is wanted."""
    positions = torch.cat([torch.arange(each.start, each.start + each.n_new) for each in pieces])
    lasts = torch.tensor([each.n_new for each in pieces]).cumsum(0) - 1
    return Batch(ids, positions.to(ids.device), None, pieces, lasts.to(ids.device))


def decode(runner: Any, cache: KVCache, n_rows: int, context: int, n_steps: int) -> dict[str, Any] | None:
    """Times steps that choose each token greedily and read it back; and, beside, the graph alone."""
    pieces = entries(cache, n_rows, context, 1, n_steps + 8)
    if pieces is None:
        return None
    ids = torch.randint(0, 1000, (n_rows,), device="cuda")
    times = []
    for step in range(n_steps + 3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        batch = batch_of([each._replace(start=context + step) for each in pieces], ids)
        ids = runner.run(batch).argmax(-1)
        ids.tolist()
        if step >= 3:
            times.append(time.perf_counter() - begun)
    alone = seconds(runner.captured(n_rows).replay)
    return {
        "batch": n_rows,
        "context": context,
        "tok_s": n_rows / statistics.median(times),
        "step_ms": 1000 * statistics.median(times),
        "graph_alone_ms": 1000 * alone,
    }


def decode_floor(model: Llama, cache: KVCache, n_rows: int, context: int, ceiling: dict[str, float]) -> float:
    """Returns the seconds that a step takes at least: every byte it must read once, or its operations."""
    text = model.config.text
    stored = dict(model.named_parameters()) | dict(model.named_buffers())
    experts = sum(x.nbytes for name, x in stored.items() if ".moe.experts." in name)
    outside = ("embedding.", "vision.", "projector.")
    rest = sum(x.nbytes for name, x in stored.items() if not name.startswith(outside) and ".moe.experts." not in name)
    share = 0.0
    if text.moe_layers:
        share = 1 - (1 - 1 / text.n_experts) ** (n_rows * text.n_active_experts)  # expected, of random routes
    in_chunk = context - cache.layout.chunk_base(context)
    keys = 0
    for layer in range(text.n_layers):
        n = context if text.chunk_len_of(layer) is None else in_chunk
        keys += n * 2 * text.n_kv_heads * text.head_dim * cache.dtype.itemsize
    reading = (rest + share * experts + n_rows * keys) / ceiling["read_bytes_per_second"]
    computing = 2 * n_rows * active_parameters(model) / ceiling["bfloat16_operations_per_second"]
    return max(reading, computing)


def active_parameters(model: Llama) -> int:
    """Returns how many weights a token is multiplied with."""
    from puna.model.count import count_parameters

    counts = count_parameters(model.config)
    return counts.activated - counts.embedding


def prefill(runner: Any, cache: KVCache, n: int, ceiling: dict[str, float], model: Llama) -> dict[str, Any]:
    """Times one prompt of `n` tokens, read in one step."""
    pieces = entries(cache, 1, 0, n, n)
    if pieces is None:
        return {"tokens": n, "tok_s": None}
    batch = batch_of(pieces, torch.randint(0, 1000, (n,), device="cuda"))
    taken = seconds(lambda: runner.run(batch), 5)
    operations = 2 * n * active_parameters(model)
    return {
        "tokens": n,
        "tok_s": n / taken,
        "share_of_matrix_rate": operations / taken / ceiling["bfloat16_operations_per_second"],
    }


def sampling(vocab_size: int) -> dict[str, float]:
    """Times the draw on the device at the settings Llama 4 was released with."""
    from puna.engine.request import Sampling
    from puna.kernels.triton_sample import Settings, draw

    found = {}
    for n_rows in (1, 64, 256):
        logits = torch.randn(n_rows, vocab_size, device="cuda") * 3
        settings = Settings.of([Sampling()] * n_rows, logits.device)
        uniforms = torch.rand(n_rows, dtype=torch.float64, device="cuda")
        found[str(n_rows)] = 1e6 * seconds(lambda x=logits, s=settings, u=uniforms: draw(x, s, u))
    return found


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Prints rows under their columns' names."""
    texts = [columns, *(tuple(shown(row[column]) for column in columns) for row in rows)]
    widths = [max(len(text[i]) for text in texts) for i in range(len(columns))]
    for text in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(text, widths, strict=True)).rstrip())
    print(flush=True)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
