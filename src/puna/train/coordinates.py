"""A check that rates transfer: toys of several widths and depths, and how far training moves what they compute.

In: a configuration and the optimiser's constants. Out: of each kind of activation its mean size before the first step
and the mean distance that it moved in a few steps, for each size of toy, and the slope of both against the size, in
logarithms: 0 where the size makes no difference. With `transfer` distances should be flat, without they are not.
Toys have the layers of the configuration, of few numbers, and read made-up rows; no data is needed. These have fewer
different tokens than the narrowest toy has numbers, and head and router begin a tenth as large: what a row of either
learns is else less than chance, which shrinks with width whatever the rates.
Source: coordinate check, Tensor Programs V (arXiv 2203.03466, appendix D.1); distances rather than sizes, since logits
begin smaller the wider a model is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.model.mask import Packed
from puna.model.transformer import Llama, start_value
from puna.train.next_token import NextToken
from puna.train.optim import Optimizer
from puna.train.pack import Batch
from puna.train.recipe import OptimizerRecipe
from puna.train.transfer import OUTPUTS, Scale, scales

Along = Literal["width", "depth"]

BASE_WIDTH, BASE_DEPTH = 32, 2
"""Width and layers of the toy whose rates are taken as they are."""

SIZES: Mapping[Along, tuple[int, ...]] = {"width": (32, 64, 128, 256), "depth": (2, 4, 8, 16)}
STEPS = 8

_HEAD_DIM = 8
_VOCABULARY = 16
_ROWS, _ROW_LEN, _BATCHES = 4, 48, 4
_QUIET = 0.1
_KINDS = {
    "attention": "attention",
    "mlp": "dense",
    "moe.shared": "shared expert",
    "moe.experts": "routed experts",
    "moe.router": "router",
}
"""Modules of a layer, by the end of their names, and what they are called in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """One row of the table: an activation, a mean size for each size of toy, before the first step; and by how much it
    moved from there until after the last, as a mean over its numbers. Slopes are those of logarithms."""

    kind: str
    start: tuple[float, ...]
    moved: tuple[float, ...]
    sizes: tuple[int, ...]

    @property
    def start_slope(self) -> float:
        return slope(self.sizes, self.start)

    @property
    def moved_slope(self) -> float:
        return slope(self.sizes, self.moved)


Report = Mapping[Along, Mapping[str, Sequence[Coordinates]]]
"""Rows by direction, "with" the transfer and "without"."""


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Returns the least-squares slope of log value against log size; nan where a value is not positive and finite."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan
    x, y = ([math.log(number) for number in numbers] for numbers in (sizes, values))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def toy(config: LlamaConfig, width: int = BASE_WIDTH, depth: int = BASE_DEPTH) -> LlamaConfig:
    """Returns a small text model with the layers of `config`, over again where it has fewer; more width is more heads
    and wider layers, in the proportions of `config`."""
    text = config.text
    n_heads = max(width // _HEAD_DIM, 2)
    layers = range(depth)
    small = replace(
        text,
        width=width,
        n_layers=depth,
        n_heads=n_heads,
        n_kv_heads=n_heads if text.n_kv_heads == text.n_heads else n_heads // 2,
        head_dim=_HEAD_DIM,
        vocab_size=_VOCABULARY,
        context_len=_ROW_LEN,
        rope_scaling=None,
        rope_layers=frozenset(i for i in layers if i % text.n_layers in text.rope_layers),
        chunk_len=None if text.chunk_len is None else _ROW_LEN // 3,
        moe_layers=frozenset(i for i in layers if i % text.n_layers in text.moe_layers),
        n_experts=min(text.n_experts, 4),
        expert_width=_proportional(text.expert_width, width, text.width),
        dense_width=_proportional(text.dense_width, width, text.width),
    )
    ids = {"image_start_id": None, "image_end_id": None, "patch_id": None, "pad_id": None}
    return replace(config, text=small, vision=None, bos_id=0, stop_ids=(1,), **ids)


def check(
    config: LlamaConfig,
    optimizer: OptimizerRecipe,
    along: Along,
    *,
    depth_exponent: float | None,
    sizes: Sequence[int] = (),
    steps: int = STEPS,
) -> list[Coordinates]:
    """Returns a row for each kind of activation, of toys as large as `sizes` (default `SIZES`).

    `depth_exponent` is that of the transfer from the base toy; None: without any.
    """
    sizes = tuple(sizes or SIZES[along])
    seen: list[tuple[dict[str, float], dict[str, float]]] = []
    for size in sizes:
        shape = toy(config, **{along: size})
        factors = {} if depth_exponent is None else scales(shape, toy(config), depth_exponent)
        seen.append(_trained(shape, optimizer, factors, steps))
    return [
        Coordinates(
            kind=kind,
            start=tuple(start[kind] for start, _ in seen),
            moved=tuple(moved[kind] for _, moved in seen),
            sizes=sizes,
        )
        for kind in seen[0][0]
        if all(kind in start for start, _ in seen)
    ]


def report(config: LlamaConfig, optimizer: OptimizerRecipe, depth_exponent: float) -> Report:
    """Returns the rows of both directions, with the transfer and without."""
    return {
        along: {
            "with": check(config, optimizer, along, depth_exponent=depth_exponent),
            "without": check(config, optimizer, along, depth_exponent=None),
        }
        for along in SIZES
    }


def text(found: Report) -> str:
    """Returns a report as tables, one below the other."""
    tables = []
    for along, both in found.items():
        for how, rows in both.items():
            head = "".join(f"{along} {size:>4}".rjust(12) for size in rows[0].sizes)
            lines = [f"{how + ' transfer':<17}{head}{'slope':>9}{'at start':>10}"]
            for row in rows:
                values = "".join(f"{value:>12.4f}" for value in row.moved)
                lines.append(f"{row.kind:<17}{values}{row.moved_slope:>9.2f}{row.start_slope:>10.2f}")
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


def to_json(found: Report) -> dict[str, Any]:
    """Returns a report as JSON values."""
    return {
        along: {how: [asdict(row) | {"slope": row.moved_slope} for row in rows] for how, rows in both.items()}
        for along, both in found.items()
    }


def _trained(
    config: LlamaConfig, recipe: OptimizerRecipe, factors: Mapping[str, Scale], steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the mean sizes of a toy's activations before `steps` steps, and how far they are from there behind
    them."""
    model = _toy_model(config, factors)
    loss = NextToken(model, balance=0.01, z=0.0, chunk=_ROWS * _ROW_LEN)
    optimizer = Optimizer(model.named_parameters(), recipe, scales=factors)
    batches = [_made_up(number) for number in range(_BATCHES)]
    before = _activations(model, batches[0])
    for step in range(steps):
        batch = batches[step % _BATCHES]
        loss(batch, loss.total(batch)).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    after = _activations(model, batches[0])
    return {k: _size(x) for k, x in before.items()}, {k: _size(after[k] - x) for k, x in before.items()}


def _toy_model(config: LlamaConfig, factors: Mapping[str, Scale]) -> Llama:
    """Returns a float32 model with the first weights of a training, but for a quiet head and router."""
    model, generator = Llama(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = start_value(name, parameter.shape, config, generator)
            quiet = _QUIET if name.endswith(OUTPUTS) else 1.0
            parameter.copy_(value * factors.get(name, Scale()).start * quiet)
    return model


@torch.no_grad()
def _activations(model: Llama, batch: Batch) -> dict[str, Tensor]:
    """Returns what the modules of all layers give for a batch, joined by kind."""
    found: dict[str, list[Tensor]] = {}

    def noting(kind: str) -> Any:
        def note(module: nn.Module, inputs: object, out: Any) -> None:
            found.setdefault(kind, []).append(out[0] if isinstance(out, tuple) else out)

        return note

    hooks = [
        module.register_forward_hook(noting(kind))
        for name, module in model.named_modules()
        for ending, kind in _KINDS.items()
        if name.startswith("layers.") and name.split(".", 2)[2:] == [ending]
    ]
    hooks.append(model.layers[-1].register_forward_hook(noting("stream")))
    store = Packed(model.config.text, batch.positions, batch.documents)
    found["logits"] = [model(batch.ids.flatten(), batch.positions.flatten(), store)]
    for hook in hooks:
        hook.remove()
    return {kind: torch.stack(parts) for kind, parts in found.items()}


def _made_up(number: int) -> Batch:
    """Rows in which three tokens of four follow from the one before."""
    generator = torch.Generator().manual_seed(1000 + number)
    follower = torch.randperm(_VOCABULARY, generator=torch.Generator().manual_seed(7))
    ids = torch.randint(0, _VOCABULARY, (_ROWS, _ROW_LEN), generator=generator)
    follows = torch.rand(_ROWS, _ROW_LEN, generator=generator) < 0.75
    for i in range(1, _ROW_LEN):
        ids[:, i] = torch.where(follows[:, i], follower[ids[:, i - 1]], ids[:, i])
    weights = torch.ones(_ROWS, _ROW_LEN)
    weights[:, -1] = 0
    return Batch(
        ids=ids,
        positions=torch.arange(_ROW_LEN).repeat(_ROWS, 1),
        documents=torch.zeros(_ROWS, _ROW_LEN, dtype=torch.int64),
        targets=ids.roll(-1, 1),
        weights=weights,
        tiles=torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        n_tiles=0,
        pieces=(),
    )


def _proportional(size: int, width: int, of_width: int) -> int:
    return max(round(size * width / of_width / 8) * 8, 8)


def _size(x: Tensor) -> float:
    return float(x.abs().mean())
