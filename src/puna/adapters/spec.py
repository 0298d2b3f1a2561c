"""Which maps of a model an adapter corrects, how many ranks it has there, and its factors before any training.

An adapter is a dictionary: names of the model's own parameters, and `Factors` for each. In: a configuration. Out: names
and factors. The router is adapted only where that is asked for, since it decides what is computed.
Not here: files (`weights.peft`), the model itself (`attach`, `merge`, `shelf`).
Source: start values as in PEFT, `tuners/lora/layer.py`; few experts, arXiv 2603.24044.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.kernels.low_rank import Factors
from puna.model.count import part_of, shapes

Adapter = Mapping[str, Factors]
"""Factors by the name of the parameter that they correct."""

Target = Literal["attention", "dense", "shared", "experts", "router", "head", "projector", "vision"]
TARGETS: tuple[Target, ...] = get_args(Target)

_PARTS: Mapping[Target, frozenset[str]] = {  # as `model.count` names them
    "attention": frozenset({"attention"}),
    "dense": frozenset({"dense"}),
    "shared": frozenset({"shared_experts"}),
    "experts": frozenset({"routed_experts"}),
    "router": frozenset({"router"}),
    "head": frozenset({"head"}),
    "projector": frozenset({"projector"}),
    "vision": frozenset({"vision", "adapter"}),
}
_NO_MAPS = frozenset({"embedding.weight", "vision.positions"})  # tables that rows are read from


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What an adapter corrects, and with how much.

    rank     of each correction; alpha: what is learnt counts alpha / rank times
    targets  kinds of maps
    experts  by layer, the routed experts that are corrected, such as `busiest` names; None: all

    Raises ConfigError when a value is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: frozenset[Target] = frozenset({"attention", "dense", "shared", "experts"})
    experts: Mapping[int, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}: give 1 or more; 8 to 64 are usual")
        if not self.alpha > 0:
            raise ConfigError(f"alpha is {self.alpha}: give a number above 0, such as twice the rank")
        if unknown := sorted(self.targets - set(TARGETS)):
            raise ConfigError(f"targets: {unknown[0]!r} is not one of {', '.join(TARGETS)}")
        if self.experts is not None and "experts" not in self.targets:
            raise ConfigError("experts are named, but targets has no 'experts': add it, or leave them out")

    def shapes(self, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """Returns the parameters that are corrected and their shapes, [out in] or of routed experts [n out in].

        Raises ConfigError where the configuration has none of a kind of maps, or not the experts named.
        """
        parts = {part: target for target in self.targets for part in _PARTS[target]}
        found = {name: shape for name, shape in maps(config).items() if part_of(name) in parts}
        missing = self.targets - {parts[part_of(name)] for name in found}
        if missing or not found:
            raise ConfigError(f"targets: this model has no {min(missing, default='maps')!r}; leave it out")
        if self.experts is None:
            return found
        return self._of_few_experts(found, self.experts, config)

    @staticmethod
    def _of_few_experts(
        found: Mapping[str, tuple[int, ...]], experts: Mapping[int, Sequence[int]], config: LlamaConfig
    ) -> dict[str, tuple[int, ...]]:
        text = config.text
        for layer, ids in experts.items():
            if layer not in text.moe_layers:
                raise ConfigError(f"experts: layer {layer} has none; layers with experts: {sorted(text.moe_layers)}")
            if list(ids) != sorted(set(ids)) or not all(0 <= each < text.n_experts for each in ids):
                raise ConfigError(
                    f"experts: {list(ids)} of layer {layer}: name each once, ascending, from 0 to {text.n_experts - 1}"
                )
        counts = {
            name: len(experts.get(_layer_of(name), ())) if len(shape) == 3 else None for name, shape in found.items()
        }
        return {
            name: shape if counts[name] is None else (counts[name] or 0, *shape[1:])
            for name, shape in found.items()
            if counts[name] != 0
        }


def begin(
    config: LlamaConfig,
    spec: Spec,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Factors]:
    """Returns an adapter that changes nothing yet: a uniform within 1/sqrt(in) of 0, from `generator` alone, b zeros.

    Raises ConfigError as `Spec.shapes`.
    """
    adapter = {}
    for name, (*stack, n_out, n_in) in spec.shapes(config).items():
        a = (2 * torch.rand(*stack, spec.rank, n_in, generator=generator) - 1) * n_in**-0.5
        b = torch.zeros(*stack, n_out, spec.rank)
        ids = None if spec.experts is None or not stack else tuple(spec.experts[_layer_of(name)])
        adapter[name] = Factors(a.to(device, dtype), b.to(device, dtype), spec.alpha / spec.rank, ids)
    return adapter


def busiest(config: LlamaConfig, counts: Tensor, share: float) -> dict[int, tuple[int, ...]]:
    """Returns for each MoE layer the `share` of its experts that most tokens went to, at least one.

    counts [M E]: how often each was chosen, by layer, as `engine.routes.RouteCounts` and a training's records count it.
    Raises ConfigError when the share is not within 0..1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share of experts is {share}: give a number above 0 and at most 1")
    n = max(1, round(share * counts.shape[1]))
    best = counts.argsort(dim=1, descending=True, stable=True)[:, :n]
    layers = sorted(config.text.moe_layers)
    return {layer: tuple(sorted(ids)) for layer, ids in zip(layers, best.tolist(), strict=True)}


def maps(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all matrices that an adapter can correct, [out in] or [E out in], by name."""
    return {name: shape for name, shape in shapes(config).items() if len(shape) > 1 and name not in _NO_MAPS}


def check(adapter: Adapter, config: LlamaConfig) -> None:
    """Raises ConfigError, naming the parameter, when an adapter is none for a model of this configuration."""
    known = maps(config)
    for name, factors in adapter.items():
        if name not in known:
            raise ConfigError(f"adapter: this model has no {name}; take the adapter's own base model")
        *stack, n_out, n_in = known[name]
        if stack and factors.experts is not None:
            stack = [len(factors.experts)]
        wanted = [(*stack, factors.rank, n_in), (*stack, n_out, factors.rank)]
        given = [tuple(factors.a.shape), tuple(factors.b.shape)]
        if wanted != given:
            raise ConfigError(
                f"adapter: factors of {name} have shapes {given[0]} and {given[1]}, where this model takes {wanted[0]} "
                f"and {wanted[1]}; take the adapter's own base model"
            )


def _layer_of(name: str) -> int:
    return int(name.split(".")[1])
