"""Which learning rate is best at several widths, with the transfer of rates and without.

    python bench/transfer.py [--widths 32,128] [--matrices adamw] [--steps 120] [--rates 5] [--json FILE]

Toys of two scout-shaped layers read the bytes of this repository's pages, each with the same rows in the same order.
A cell is the mean loss of the last fifth of the steps, in nats a byte; rates are powers of two around 2^-6. The best
rate is that of a parabola through the three cells around the least, in logarithms.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from puna.config import LlamaConfig
from puna.model.transformer import Llama, start_value
from puna.presets import SCOUT
from puna.train.coordinates import toy
from puna.train.next_token import NextToken
from puna.train.optim import Optimizer, learning_rate
from puna.train.pack import Batch
from puna.train.recipe import OptimizerRecipe, ScheduleRecipe
from puna.train.transfer import Scale, scales

ROWS, ROW_LEN = 12, 64
MIDDLE = -6
PAGES = Path(__file__).parents[1] / "docs"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    widths = [int(width) for width in arguments.widths.split(",")]
    exponents = range(MIDDLE - arguments.rates // 2, MIDDLE - arguments.rates // 2 + arguments.rates)
    text = torch.tensor(list(b"".join(page.read_bytes() for page in sorted(PAGES.glob("*.md")))))
    base, found = _shape(widths[0]), {}
    print("".join([f"{'':24}", *(f"2^{e}".rjust(9) for e in exponents), f"{'best':>9}"]))
    for width in widths:
        factors = {"with": scales(_shape(width), base, 1.0), "without": {}}
        for how in ("with", "without") if width != widths[0] else ("without",):
            losses = []
            for exponent in exponents:
                recipe = _optimizer(arguments.matrices, 2.0**exponent)
                losses.append(_loss(_shape(width), recipe, factors[how], text, arguments.steps))
                print(f"width {width} {how} 2^{exponent}: {losses[-1]:.4f}", file=sys.stderr, flush=True)
            best = _best(exponents, losses)
            found[f"{width} {how}"] = {"log2_rates": list(exponents), "losses": losses, "best_log2": best}
            name = f"width {width}" + ("" if width == widths[0] else f" {how} transfer")
            print("".join([f"{name:24}", *(f"{loss:9.3f}" for loss in losses), f"2^{best:.1f}".rjust(9)]), flush=True)
    if arguments.json:
        facts = {"matrices": arguments.matrices, "steps": arguments.steps, "runs": found}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,128")
    parser.add_argument("--matrices", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rates", type=int, default=5, help="how many")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _shape(width: int) -> LlamaConfig:
    """A toy of bytes."""
    config = toy(SCOUT, width=width)
    return replace(config, text=replace(config.text, vocab_size=256, context_len=ROW_LEN))


def _optimizer(matrices: str, lr: float) -> OptimizerRecipe:
    return OptimizerRecipe(
        lr=lr, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, matrices=matrices
    )


def _loss(
    config: LlamaConfig, recipe: OptimizerRecipe, factors: Mapping[str, Scale], text: torch.Tensor, steps: int
) -> float:
    """Returns the mean loss of the last fifth of a training."""
    model, generator = Llama(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = factors.get(name, Scale()).start
            parameter.copy_(start_value(name, parameter.shape, config, generator) * start)
    loss = NextToken(model, balance=0.01, z=0.0, chunk=ROWS * ROW_LEN)
    optimizer = Optimizer(model.named_parameters(), recipe, scales=factors)
    schedule = ScheduleRecipe(steps=steps, warmup_steps=steps // 10, decay_steps=steps // 2, final_fraction=0.1)
    places = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        batch = _batch(text, places)
        part = loss(batch, loss.total(batch))
        part.total.backward()
        optimizer.step(learning_rate(schedule, step))
        losses.append(float(part.nll))
    last = losses[-steps // 5 :]
    return sum(last) / len(last)


def _batch(text: torch.Tensor, places: torch.Generator) -> Batch:
    starts = torch.randint(0, len(text) - ROW_LEN - 1, (ROWS, 1), generator=places)
    where = starts + torch.arange(ROW_LEN)
    return Batch(
        ids=text[where],
        positions=torch.arange(ROW_LEN).repeat(ROWS, 1),
        documents=torch.zeros(ROWS, ROW_LEN, dtype=torch.int64),
        targets=text[where + 1],
        weights=torch.ones(ROWS, ROW_LEN),
        tiles=torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        n_tiles=0,
        pieces=(),
    )


def _best(exponents: Sequence[int], losses: Sequence[float]) -> float:
    """Returns the place of the least loss; at an end of the range that end, or nan where nothing was finite."""
    i = min(range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
    if not 0 < i < len(losses) - 1:
        return float(exponents[i])
    before, least, after = losses[i - 1 : i + 2]
    return exponents[i] + 0.5 * (before - after) / (before - 2 * least + after)


if __name__ == "__main__":
    main()
