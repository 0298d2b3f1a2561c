"""What a token of a run takes to train, and the most that its processors could do: what utilisation (MFU) is out of.

In: a run's recipe and the model's configuration. Out: `work.json` in the folder of the run, for its page. A token takes
6 operations for each parameter that it is multiplied with: those of the decoder and the head, of routed experts the
chosen ones, and not the embedding, of which it reads a row. Attention to earlier positions and the vision tower are
left out, so the utilisation is a lower bound.

Source: Kaplan et al., arXiv 2001.08361 (6 operations); Chowdhery et al., arXiv 2204.02311 (utilisation).
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from puna.config import LlamaConfig
from puna.model.count import count_parameters
from puna.plan.hardware import KINDS
from puna.train.recipe import RunRecipe

WORK = "work.json"


class Work(NamedTuple):
    """token_flops: operations a token. peak_flops: operations a second of all ranks' processors, None where neither
    declared nor known; peak_source says which, in words."""

    token_flops: float
    peak_flops: float | None
    peak_source: str


def work_of(recipe: RunRecipe, config: LlamaConfig, processor: str) -> Work:
    """Returns what a run takes on processors of this name, as the driver says it."""
    count = count_parameters(config)
    flops = 6.0 * (count.activated - count.embedding)
    ranks, declared = recipe.parallel.world, recipe.log.peak_tflops
    if declared:
        return Work(flops, declared * 1e12 * ranks, f"{declared:g} TFLOP/s declared, times {ranks}")
    for name in ("gb200", "b200", "h200", "h100", "a100", "mi300x"):
        if name in processor.lower() and not any(slower in processor for slower in ("PCIe", "NVL")):
            kind = KINDS[name]
            rate = kind.rate("float32" if recipe.compute.dtype == "float32" else "bfloat16")
            return Work(flops, rate * ranks, f"{rate / 1e12:g} TFLOP/s of {kind.name} by its datasheet, times {ranks}")
    return Work(flops, None, "not known: log.peak_tflops declares it")


def write_work(run: Path, recipe: RunRecipe, config: LlamaConfig) -> None:
    """Writes `work.json` for a run on the processor of this process."""
    name = torch.cuda.get_device_name() if recipe.compute.device == "cuda" else ""
    partial = run / f"{WORK}.partial"
    partial.write_text(json.dumps(work_of(recipe, config, name)._asdict()) + "\n", "utf-8")
    partial.replace(run / WORK)
