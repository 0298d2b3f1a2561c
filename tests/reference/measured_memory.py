"""What loading, serving and training toys really take: the kernel's high-water mark of a process of its own.

    python -m tests.reference.measured_memory load FOLDER [int4|int8|none]
    python -m tests.reference.measured_memory serve FOLDER QUANTIZE BATCH CONTEXT
    python -m tests.reference.measured_memory train ROWS ROW_LEN MATRICES DTYPE

Prints one JSON document: the bytes added to what interpreter, libraries and a first tiny model had taken.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from puna.bench.machine import peak_resident_bytes
from puna.config import LlamaConfig
from puna.presets import SCOUT


def toy(share: int = 1) -> LlamaConfig:
    """Scout in small: a hundred million parameters in eight layers, chunks of 512. `share`: so many times narrower."""
    text = replace(
        SCOUT.text,
        width=512 // share,
        n_layers=8,
        n_heads=8,
        n_kv_heads=4,
        head_dim=64 // share,
        vocab_size=4096,
        context_len=65_536,
        rope_layers=frozenset(i for i in range(8) if (i + 1) % 4),
        chunk_len=512,
        moe_layers=frozenset(range(8)),
        n_experts=8,
        expert_width=1024 // share,
    )
    return replace(
        SCOUT, text=text, vision=None, bos_id=0, stop_ids=(1,), pad_id=2, image_start_id=None, image_end_id=None,
        patch_id=None,
    )  # fmt: skip


def make(folder: Path, share: int = 1) -> None:
    """Writes a checkpoint of the toy, without a tokenizer."""
    from puna.model.transformer import Llama, initialise
    from puna.weights.checkpoint import save_hf

    model = Llama(toy(share))
    initialise(model, torch.Generator().manual_seed(0))
    save_hf(model.to(torch.bfloat16), toy(share), folder)


def load(folder: Path, quantize: str) -> object:
    """Loads the checkpoint as `puna.load` does on the processor."""
    from puna.quant import swap
    from puna.weights import checkpoint

    policy = None if quantize == "none" else swap.Policy.in_memory(quantize)  # type: ignore[arg-type]
    return checkpoint.load(folder, place=swap.placer(policy, torch.bfloat16))


def serve(folder: Path, quantize: str, batch: int, context: int) -> None:
    """Answers `batch` requests at once, each of `context` tokens in the end."""
    from puna.engine.blocks import Counts, Layout
    from puna.engine.engine import Engine
    from puna.engine.request import Request, Sampling
    from puna.model.transformer import Llama

    model = load(folder, quantize)
    assert isinstance(model, Llama)
    peak = Layout.of(model.config.text).peak(context)
    engine = Engine(model, n_blocks=Counts(peak.n_global * batch, peak.n_chunked * batch))
    for number in range(batch):
        ids = [3 + (7 * i + number) % 4000 for i in range(context - 8)]
        engine.add(Request(ids=ids, sampling=Sampling(temperature=0.0, max_new_tokens=8)))
    while not engine.is_idle:
        engine.step()


def train(rows: int, row_len: int, matrices: str, dtype: torch.dtype) -> None:
    """Makes two updates of the toy; where there are C++ kernels of a training step, they make those in bfloat16."""
    from puna.model.transformer import Llama, initialise
    from puna.train.next_token import NextToken
    from puna.train.optim import Optimizer, cast
    from puna.train.pack import Batch
    from puna.train.recipe import OptimizerRecipe
    from puna.train.update import OneProcess

    model = Llama(toy())
    initialise(model, torch.Generator().manual_seed(0))
    recipe = OptimizerRecipe(
        lr=1e-3, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, matrices=matrices
    )
    optimizer = Optimizer(model.named_parameters(), recipe)
    cast(model, dtype)
    ids = torch.randint(3, 4000, (rows, row_len))
    batch = Batch(
        ids=ids,
        positions=torch.arange(row_len).repeat(rows, 1),
        documents=torch.zeros_like(ids),
        targets=ids.roll(-1, 1),
        weights=torch.ones(rows, row_len),
        tiles=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        n_tiles=0,
        pieces=((),) * rows,
    )
    update = OneProcess(NextToken(model, balance=0.01, z=0.0, chunk=256), optimizer, "cpu")
    for _ in range(2):
        update([batch], 1.0, lambda _: [])


def main(arguments: list[str]) -> None:
    what, *rest = arguments
    torch.set_num_threads(1)
    torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)  # the library's own memory
    if what == "make":
        make(Path(rest[0]))
        return
    from puna.engine.engine import Engine  # noqa: F401  code counts as what was there before
    from puna.quant import swap  # noqa: F401
    from puna.train.update import OneProcess  # noqa: F401
    from puna.weights import checkpoint  # noqa: F401

    if what != "train":  # a model of a few hundred kilobytes brings in all code, and what it keeps for itself
        with tempfile.TemporaryDirectory() as tiny:
            make(Path(tiny), share=16)
            serve(Path(tiny), rest[1], batch=1, context=32)
    before = peak_resident_bytes()
    if what == "load":
        kept = load(Path(rest[0]), rest[1])
        assert kept is not None
    elif what == "serve":
        serve(Path(rest[0]), rest[1], int(rest[2]), int(rest[3]))
    else:
        train(int(rest[0]), int(rest[1]), rest[2], getattr(torch, rest[3]))
    print(json.dumps({"added": peak_resident_bytes() - before, "before": before}))


if __name__ == "__main__":
    main(sys.argv[1:])
