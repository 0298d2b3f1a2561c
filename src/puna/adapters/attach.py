"""An adapter as part of a model, for training: modules that correct what the module in them gives.

In: a model, and an adapter. Out: the same model, in which the factors are the only parameters that train. The base may
be in small numbers (QLoRA): gradients pass through them, and they stay as small as they are. Everything that runs a
model runs one with an adapter, the engine too, whose answers are then those of the factors at that moment.
Not here: which maps (`spec`), several adapters over one base (`shelf`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from puna.adapters.spec import Adapter, check
from puna.errors import ConfigError
from puna.kernels import low_rank
from puna.kernels.experts import Slots
from puna.kernels.low_rank import Correct, Factors, Groups
from puna.kernels.native import Packed
from puna.model.deltas import Adapted
from puna.model.transformer import Llama

_LEAVES = ("weight", "gate_up", "down")


class LowRank(nn.Module):
    """Factors as parameters: a [r in] and b [out r], or of experts a [n r in] and b [n out r]."""

    group_of: Tensor | None

    def __init__(self, factors: Factors, n_experts: int | None = None) -> None:
        """`n_experts` of the stack, where these are factors of one."""
        super().__init__()
        self.a, self.b = nn.Parameter(factors.a.detach()), nn.Parameter(factors.b.detach())
        self.scale, self.experts = factors.scale, factors.experts
        table = None
        if n_experts is not None and factors.experts is not None:
            table = torch.full((n_experts,), -1, device=factors.a.device)
            table[list(factors.experts)] = torch.arange(len(factors.experts), device=table.device)
        self.register_buffer("group_of", table, persistent=False)

    @property
    def factors(self) -> Factors:
        """The factors as they are now, detached."""
        return Factors(self.a.detach(), self.b.detach(), self.scale, self.experts)

    def correct(self, x: Tensor, y: Tensor, slots: Slots) -> Tensor:
        """Is a `low_rank.Correct`."""
        groups = Groups(None, slots.ends)
        if self.group_of is not None:
            groups = low_rank.grouped(self.group_of[low_rank.expert_of_slots(slots)], len(self.a))
        return low_rank.correct(x, y, self.a.to(x.dtype), self.b.to(x.dtype), groups, self.scale)


class AdaptedLinear(Adapted):
    """A linear map, plain or small, and its correction."""

    def __init__(self, base: nn.Module, factors: Factors) -> None:
        super().__init__()
        self.base = base
        self.weight_factors = LowRank(factors)

    def forward(self, x: Tensor) -> Tensor:
        own = self.weight_factors
        return low_rank.linear(x, self.base(x), own.a.to(x.dtype), own.b.to(x.dtype), own.scale)


class AdaptedExperts(Adapted):
    """The routed experts of one layer, plain or small, and the corrections of one of their stacks or both."""

    def __init__(self, base: nn.Module, gate_up: Factors | None, down: Factors | None, n_experts: int) -> None:
        super().__init__()
        self.base = base
        self.gate_up_factors = None if gate_up is None else LowRank(gate_up, n_experts)
        self.down_factors = None if down is None else LowRank(down, n_experts)

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        corrects = (_correct(each) for each in (self.gate_up_factors, self.down_factors))
        return low_rank.routed_experts(x, scores, experts, self.base.gate_up, self.base.down, *corrects)  # type: ignore[arg-type]


def attach(model: Llama, adapter: Adapter) -> None:
    """Makes an adapter part of a model, whose other parameters stop to train.

    The factors become parameters as they are, not copies. Raises ConfigError when the adapter does not fit, the model
    has one already, or its weights are packed or elsewhere, so that no gradient passes.
    """
    check(adapter, model.config)
    _check_base(model)
    model.requires_grad_(False)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in adapter):
        outer, _, own = path.rpartition(".")
        base = model.get_submodule(path)
        if f"{path}.weight" in adapter:
            adapted: Adapted = AdaptedLinear(base, adapter[f"{path}.weight"])
        else:
            gate_up, down = (adapter.get(f"{path}.{leaf}") for leaf in ("gate_up", "down"))
            adapted = AdaptedExperts(base, gate_up, down, model.config.text.n_experts)
        adapted.train(base.training)
        setattr(model.get_submodule(outer), own, adapted)


def detach(model: Llama) -> dict[str, Factors]:
    """Returns the factors that a model has, and gives the model its own modules back. Nothing of it trains then."""
    adapter = adapter_of(model)
    for path, part in [each for each in model.named_modules() if isinstance(each[1], Adapted)]:
        outer, _, own = path.rpartition(".")
        setattr(model.get_submodule(outer), own, part.base)
    return adapter


def adapter_of(model: nn.Module) -> dict[str, Factors]:
    """Returns the factors that a model has now, not copied."""
    return {name: part.factors for name, part in _factors(model)}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that train: for a corrected parameter "x" those are "x.a" and "x.b"."""
    return {f"{name}.{leaf}": getattr(part, leaf) for name, part in _factors(model) for leaf in ("a", "b")}


def _factors(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    for path, part in model.named_modules():
        if isinstance(part, LowRank):
            yield path.removesuffix("_factors"), part


def _correct(factors: LowRank | None) -> Correct:
    return low_rank.as_it_is if factors is None else factors.correct


def _check_base(model: Llama) -> None:
    for path, part in model.named_modules():
        if isinstance(part, Adapted):
            raise ConfigError(f"adapter: {path} has one already; detach it, or merge it first")
        if any(isinstance(getattr(part, leaf, None), Packed) for leaf in _LEAVES):
            raise ConfigError(
                f"adapter: {path} is packed for answering, and passes no gradients; load the model unpacked to train it"
            )
