"""An adapter and its base made one: weights that give by themselves what base and corrections gave together.

In: parameters and an adapter. Out: W + scale * b a, computed in float32 and rounded once to the dtype of W, one expert
at a time. Small numbers are not merged: their steps are larger than most corrections. Merge the checkpoint that they
were made from, and make that small.
Not here: files (`weights.checkpoint.convert` merges one parameter at a time on its way through).
"""

import torch
from torch import Tensor

from puna.adapters.spec import Adapter, check
from puna.errors import ConfigError
from puna.kernels.low_rank import Factors
from puna.model.transformer import Llama, set_parameter


@torch.no_grad()
def merge(model: Llama, adapter: Adapter) -> None:
    """Puts merged weights in the place of a model's own, one parameter after the other. Do it before an engine is made.

    Raises ConfigError, before anything is changed, where the adapter does not fit or a weight is no plain tensor.
    """
    check(adapter, model.config)
    weights = dict(model.named_parameters())
    for name in adapter:
        if name not in weights or not weights[name].is_floating_point():
            raise ConfigError(
                f"adapter: {name} is in small numbers or packed, and cannot take it in; merge the checkpoint with puna "
                "convert --adapter, then make it small"
            )
    for name in adapter:
        trains = weights[name].requires_grad
        set_parameter(model, name, merged(name, weights.pop(name).detach(), adapter))
        model.get_parameter(name).requires_grad_(trains)


def merged(name: str, weight: Tensor, adapter: Adapter) -> Tensor:
    """Returns the merged weight of the parameter `name`, [out in] or [E out in]; itself where nothing corrects it."""
    factors = adapter.get(name)
    if factors is None:
        return weight
    if weight.dim() == 2:
        return _sum(weight, factors)
    out = weight.clone()
    for i, expert in enumerate(range(len(weight)) if factors.experts is None else factors.experts):
        out[expert] = _sum(weight[expert], Factors(factors.a[i], factors.b[i], factors.scale))
    return out


def _sum(weight: Tensor, factors: Factors) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = (factor.to(weight.device, wide) for factor in (factors.a, factors.b))
    return torch.addmm(weight.to(wide), b, a, alpha=factors.scale).to(weight.dtype)
