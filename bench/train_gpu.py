"""puna's training on one GPU: is its gradient right there, and how much of the GPU's arithmetic does a step use?

    PYTHONPATH=src python bench/train_gpu.py                              on an H100 or H200: about five minutes
    PYTHONPATH=src python bench/train_gpu.py --layers 20 --experts 4      1.04 B parameters active, all that fit
    PYTHONPATH=src python bench/train_gpu.py --device cpu                 the same lines on a toy: a rehearsal

`checks`: a toy with every kind of layer, its loss and the gradient of every parameter by the path that is timed, beside
a plain forward in float32 on the CPU without any of it: no band, no chunked loss, no compilation. `steps`: forward,
backward and update in bfloat16 with float32 masters, of the first layers of recipes/research-1b.json, which is shaped
like Scout: all of its layers with 16 experts do not fit one GPU with their masters, so either layers or experts go.

Utilisation (MFU) is 6 operations for each parameter that a token is multiplied with (train/watch/work.py), attention
left out and counted, over the datasheet's rate of dense bfloat16 products. The reference is 28 %, 277 TFLOP/s a GPU:
NVIDIA NeMo AutoModel, PyTorch's FSDP2 and expert parallelism, Qwen3-30B-A3B on 8 H100 in bfloat16, the best published
figure for mixtures of experts on Hopper by PyTorch that we found (NVIDIA-NeMo/Automodel docs/performance-summary.mdx).
The aim is 40 %. Ids are random, so experts are loaded nearly evenly, which flatters: the spread of loads is printed.

Writes bench/results/train-gpu-DATE-NAME.json, but not for a rehearsal. Ends with 1 where a gradient is wrong, with 2
where there is no GPU.
"""

import argparse
import datetime
import json
import re
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.bench import machine
from puna.config import LlamaConfig
from puna.model.count import count_parameters
from puna.model.mask import Packed
from puna.model.transformer import Llama, initialise
from puna.train.next_token import NextToken, router_losses
from puna.train.optim import Optimizer, cast
from puna.train.pack import PADDING, Batch
from puna.train.recipe import OptimizerRecipe
from puna.train.watch.work import known_peak, token_flops
from puna.weights.configs import from_hf

ROOT = Path(__file__).parents[1]
SHAPE = ROOT / "recipes" / "research-1b.json"
REFERENCE_MFU, AIM_MFU = 0.28, 0.40
BALANCE, Z = 0.01, 0.001
OPTIONS = OptimizerRecipe(
    lr=1e-4, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, matrices="muon"
)


class Check(NamedTuple):
    """How far the path that is timed is from the plain one: relative, of the loss and of the worst parameter's
    gradient, by norms."""

    numbers: str
    loss: float
    gradient: float
    worst: str
    bound: float

    @property
    def ok(self) -> bool:
        return max(self.loss, self.gradient) <= self.bound


def main() -> int:
    """Runs both parts. Returns the exit code."""
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("train_gpu.py: torch sees no CUDA device; --device cpu rehearses on a toy", file=sys.stderr)
        return 2
    is_rehearsal = arguments.device == "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(arguments.device)
    checks = [check(device, numbers, arguments.compile) for numbers in (torch.float32, torch.bfloat16)]
    for each in checks:
        print(f"{each.numbers}: loss {each.loss:.1e}, gradient {each.gradient:.1e} ({each.worst}), ok: {each.ok}")
    config = toy() if is_rehearsal else shape(arguments.layers, arguments.experts)
    rows, row_len = (2, 64) if is_rehearsal else (arguments.rows, arguments.row_len)
    found = {
        "device": "cpu" if is_rehearsal else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "checks": [each._asdict() | {"ok": each.ok} for each in checks],
        "steps": steps(config, device, rows, row_len, arguments),
        "published": {"mfu": REFERENCE_MFU, "aim": AIM_MFU, "of": "NeMo AutoModel, Qwen3-30B-A3B, 8 H100, bfloat16"},
    }
    print(json.dumps(found, indent=1))
    if not is_rehearsal:
        name = re.sub(r"\W+", "-", found["device"]).strip("-")
        path = (arguments.out or Path(__file__).parent / "results") / f"train-gpu-{found['date']}-{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if all(each.ok for each in checks) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--layers", type=int, default=8, help="of the model's 20 (default 8)")
    parser.add_argument("--experts", type=int, default=16, help="of each layer's 16 (default 16)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--row-len", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20, help="that are timed, after three that are not")
    parser.add_argument("--no-compile", action="store_false", dest="compile")
    parser.add_argument("--out", type=Path, help="folder of the JSON file instead of bench/results")
    return parser.parse_args()


def shape(layers: int, experts: int) -> LlamaConfig:
    """Returns the first layers of the research model, with so many experts each."""
    config = from_hf(json.loads(SHAPE.read_text("utf-8")))
    kept = frozenset(range(layers))
    text = replace(
        config.text,
        n_layers=layers,
        n_experts=experts,
        rope_layers=config.text.rope_layers & kept,
        moe_layers=config.text.moe_layers & kept,
    )
    return replace(config, text=text)


def toy() -> LlamaConfig:
    """Returns a small model with every kind of layer: chunked and global, dense and routed."""
    config = shape(4, 4)
    text = replace(
        config.text,
        width=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        vocab_size=256,
        context_len=256,
        chunk_len=16,
        rope_layers=frozenset({0, 1, 2}),
        moe_layers=frozenset({1, 3}),
        expert_width=48,
        dense_width=96,
    )
    return replace(config, text=text, bos_id=0, stop_ids=(1,), pad_id=2)


def random_batch(config: LlamaConfig, rows: int, row_len: int, lengths: tuple[int, ...]) -> Batch:
    """Returns rows of random ids, documents of these lengths in each, and padding behind them."""
    ids = torch.randint(0, config.text.vocab_size, (rows, row_len + 1), generator=torch.Generator().manual_seed(1))
    parts = [*lengths, row_len - sum(lengths)]
    numbers = [*range(len(lengths)), PADDING]
    weights = torch.cat([torch.ones(row_len - parts[-1]), torch.zeros(parts[-1])])
    weights[[sum(lengths[: i + 1]) - 1 for i in range(len(lengths))]] = 0  # nothing follows a document's last token
    return Batch(
        ids=ids[:, :-1].contiguous(),
        positions=torch.cat([torch.arange(n) for n in parts]).repeat(rows, 1),
        documents=torch.cat([torch.full((n,), d) for n, d in zip(parts, numbers, strict=True)]).repeat(rows, 1),
        targets=ids[:, 1:].contiguous(),
        weights=weights.repeat(rows, 1),
        tiles=torch.zeros(0, 3, 16, 16, dtype=torch.uint8),
        n_tiles=0,
        pieces=((),) * rows,
    )


def random_model(config: LlamaConfig, device: torch.device) -> Llama:
    """Returns a float32 model, the same on every device."""
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(2))
    return model.to(device)


def check(device: torch.device, numbers: torch.dtype, compiled: bool) -> Check:
    """Compares the path that is timed, on the device and in these numbers, with a plain forward in float32 here.

    In float32 only the order of sums differs. In bfloat16 a gradient has two digits, and a token near a router's border
    may go to another expert: the bound says what a wrong path would exceed.
    """
    config = toy()
    batch = random_batch(config, 2, 64, (21, 39))
    plain, model = random_model(config, torch.device("cpu")), random_model(config, device).to(numbers)
    expected = plain_loss(plain, batch)
    expected.backward()
    loss = NextToken(model, balance=BALANCE, z=Z, chunk=48, compiled=compiled)
    moved = batch.to(device)
    found = loss(moved, moved.weights.sum()).total
    found.backward()
    off = {
        name: relative(parameter.grad, twin.grad)
        for (name, parameter), twin in zip(model.named_parameters(), plain.parameters(), strict=True)
    }
    worst = max(off, key=lambda name: off[name])
    name = str(numbers).removeprefix("torch.")
    bound = 1e-4 if numbers == torch.float32 else 0.1
    return Check(name, relative(found.detach(), expected.detach()), off[worst], worst, bound)


def plain_loss(model: Llama, batch: Batch) -> Tensor:
    """The loss as it is defined: whole rows under a mask, all logits at once."""
    store = Packed(model.config.text, batch.positions, batch.documents)
    states, routes = model.hidden(batch.ids.flatten(), batch.positions.flatten(), store, None)
    losses = F.cross_entropy(model.logits(states), batch.targets.flatten(), reduction="none")
    logits, experts = (torch.stack(each) for each in zip(*((r.logits, r.experts) for r in routes), strict=True))
    router = router_losses(logits.float(), experts, batch.documents.flatten() != PADDING)
    return (losses * batch.weights.flatten()).sum() / batch.weights.sum() + BALANCE * router.balance + Z * router.z


def relative(found: Tensor | None, expected: Tensor | None) -> float:
    """Returns the norm of the difference over the norm of what was expected; both must be there."""
    assert found is not None and expected is not None, "every parameter has a gradient"
    return float((found.float().cpu() - expected).norm() / expected.norm().clamp(min=1e-12))


def steps(
    config: LlamaConfig, device: torch.device, rows: int, row_len: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Times whole steps, and returns what they reach."""
    model = random_model(config, device)
    optimizer = Optimizer(model.named_parameters(), OPTIONS)
    cast(model, torch.bfloat16)
    loss = NextToken(model, balance=BALANCE, z=Z, chunk=min(4096, rows * row_len), compiled=arguments.compile)
    batch = random_batch(config, rows, row_len, (row_len,)).to(device)
    total = batch.weights.sum()
    passes, updates, load = [], [], torch.zeros(0)
    for step in range(arguments.steps + 3):
        began = now(device)
        part = loss(batch, total)
        part.total.backward()  # type: ignore[no-untyped-call]
        middle = now(device)
        optimizer.step(1.0)
        ended = now(device)
        if step >= 3:
            passes.append(middle - began)
            updates.append(ended - middle)
        load = part.load
    seconds = statistics.median(passes) + statistics.median(updates)
    each, tokens = token_flops(config), rows * row_len
    attended = 12 * attention_pairs(config, row_len) * config.text.n_heads * config.text.head_dim
    measured = machine.flops(device, torch.bfloat16, 3, 8192 if device.type == "cuda" else 512)
    known = known_peak(torch.cuda.get_device_name(), "bfloat16") if device.type == "cuda" else None
    peak = measured if known is None else known[0]
    return {
        "layers": config.text.n_layers,
        "experts": config.text.n_experts,
        "parameters": count_parameters(config).total,
        "active": count_parameters(config).activated,
        "rows": rows,
        "row_len": row_len,
        "passes_seconds": statistics.median(passes),
        "update_seconds": statistics.median(updates),
        "tokens_per_second": tokens / seconds,
        "peak_flops": peak,
        "peak_source": "measured, square products" if known is None else f"datasheet of {known[1]}",
        "product_flops": measured,
        "mfu": tokens * each / seconds / peak,
        "mfu_of_passes": tokens * each / statistics.median(passes) / peak,
        "mfu_attention_counted": tokens * (each + attended / row_len) / seconds / peak,
        "busiest_expert_over_mean": float(load.max() * config.text.n_experts),
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else machine.peak_resident_bytes(),
    }


def attention_pairs(config: LlamaConfig, row_len: int) -> int:
    """Returns how many pairs of query and key are seen, in all layers, in a row of one document."""
    pairs = 0
    for layer in range(config.text.n_layers):
        chunk = config.text.chunk_len_of(layer) or row_len
        whole, rest = divmod(row_len, chunk)
        pairs += whole * chunk * (chunk + 1) // 2 + rest * (rest + 1) // 2
    return pairs


def now(device: torch.device) -> float:
    """Returns the seconds when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
