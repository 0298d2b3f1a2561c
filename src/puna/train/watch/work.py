"""What a token of a run takes to train, and the most that its processors could do: what utilisation (MFU) is out of.

In: a run's recipe and the model's configuration. Out: `work.json` in the folder of the run, for its page. A token takes
6 operations for each parameter that it is multiplied with: those of the decoder and the head, of routed experts the
chosen ones, and not the embedding, of which it reads a row. Where only some train, the others take 4: there is no
gradient of theirs. Attention to earlier positions and the vision tower are left out, so the utilisation is a lower
bound; so are a tuning's teacher, and replies that are drawn between its steps.

Source: Kaplan et al., arXiv 2001.08361 (6 operations); Chowdhery et al., arXiv 2204.02311 (utilisation).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from puna.config import LlamaConfig
from puna.hardware import KINDS
from puna.model.count import count_parameters, part_of, shapes
from puna.records import write_whole
from puna.train.recipe import RunRecipe

WORK = "work.json"
_NOT_MULTIPLIED = ("embedding", "vision", "adapter", "projector")  # by every token of a text


class Work(NamedTuple):
    """token_flops: operations a token. peak_flops: operations a second of all ranks' processors, None where neither
    declared nor known; peak_source says which, in words."""

    token_flops: float
    peak_flops: float | None
    peak_source: str


def work_of(recipe: RunRecipe, config: LlamaConfig, processor: str, trained: Mapping[str, int] | None = None) -> Work:
    """Returns what a run takes on processors of this name, as the driver says it. trained: names and sizes of what
    trains, parameters of the model or factors beside them; None: the whole model."""
    flops = token_flops(config, trained)
    ranks, declared = recipe.parallel.world, recipe.log.peak_tflops
    if declared:
        return Work(flops, declared * 1e12 * ranks, f"{declared:g} TFLOP/s declared, times {ranks}")
    if (known := known_peak(processor, recipe.compute.dtype)) is not None:
        rate, name = known
        return Work(flops, rate * ranks, f"{rate / 1e12:g} TFLOP/s of {name} by its datasheet, times {ranks}")
    return Work(flops, None, "not known: log.peak_tflops declares it")


def known_peak(processor: str, dtype: str) -> tuple[float, str] | None:
    """Returns the operations a second of a GPU by its datasheet, and its kind; None for one that is not known."""
    for name in ("gb200", "b200", "h200", "h100", "a100", "mi300x"):
        if name in processor.lower() and not any(slower in processor for slower in ("PCIe", "NVL")):
            return KINDS[name].rate("float32" if dtype == "float32" else "bfloat16"), KINDS[name].name
    return None


def token_flops(config: LlamaConfig, trained: Mapping[str, int] | None = None) -> float:
    """Returns the operations of a token, as the head of this file counts them. `trained` as in `work_of`."""
    count, text = count_parameters(config), config.text
    own = {name: math.prod(shape) for name, shape in shapes(config).items()}
    learnt = 0.0
    for name, size in (own if trained is None else trained).items():
        if (part := part_of(name)) not in _NOT_MULTIPLIED:
            share = text.n_active_experts / text.n_experts if part == "routed_experts" else 1.0
            learnt += share * size * (2 if name in own else 6)
    return 4.0 * (count.activated - count.embedding) + learnt


def write_work(run: Path, recipe: RunRecipe, config: LlamaConfig, trained: Mapping[str, int] | None = None) -> None:
    """Writes `work.json` for a run on the processor of this process. `trained` as in `work_of`."""
    name = torch.cuda.get_device_name() if recipe.compute.device == "cuda" else ""
    write_whole(run / WORK, json.dumps(work_of(recipe, config, name, trained)._asdict()) + "\n")
