"""Rates and first weights for another width and depth than those at which a learning rate was found.

In: two configurations, of the model to train and of the small one (`base`) whose rates are known. Out: for each
parameter by how much its first weights, its learning rate and its epsilon differ from what they would be without. The
model stays a plain Llama 4: a factor that others put into the forward pass is folded into the weights behind it and
into their rate, so that nothing of this is left in a checkpoint.

A parameter's rule follows from what it reads and writes, in ratios to the base (in, out, and depth for layers):

    kind                          first weights            AdamW's rate            Muon's rate
    tables, gains, biases         as in the base           1
    maps                          base's * in^-1/2         1/in                    sqrt(out/in), of the spectral norm
    head and router               base's / in              1/in
    in a layer, besides                                    * depth^(a-1)           * depth^(a-1)
    what writes into the stream   * depth^-a               * depth^-a              * depth^-a

Tables are looked up (the embedding) or added (positions). Head and router read something wide and write something
that does not grow, logits. Experts are maps whatever the router does: a token that reaches one changes all of it.
The exponent a (`transfer.depth_exponent`) says how the branch of a layer shrinks: with 1 every layer keeps learning
something of its own, with 1/2 the branches of many layers add up like random numbers. Decay stays what it is for all,
learning rate times weight decay; AdamW's epsilon follows the size of gradients, 1/out and smaller by depth^-a within a
branch. Muon's updates have singular values of one size whatever the gradient, so only their size is a question.

Attention divides by sqrt(head size), which no weight of a head that norms its queries and keys could undo: the size of
a head has to be the base's, and more width is more heads. Nothing is said here about batch size, the length of a
training or the number of experts.

"MetaP", by which the card's models got such factors, was never published; this is not Meta's.
Source: maps, tables and head, Tensor Programs V (arXiv 2203.03466, table 3); depth, Depth-muP (arXiv 2310.02244) with
a = 1/2, CompleteP (arXiv 2505.01618, table 1) with a = 1, and its epsilon; router and experts, arXiv 2508.09752;
spectral norm, arXiv 2310.17813; the base's scale of Muon's updates, arXiv 2502.16982.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model.count import shapes
from puna.model.transformer import depth_of, start_std, writes_to_stream
from puna.train.architecture import architecture
from puna.train.recipe import Recipe

TABLES = ("embedding.weight", "vision.positions", "vision.class_token")
OUTPUTS = ("head.weight", "moe.router.weight")

_LAYER = re.compile(r"layers\.\d+\.")
_WRITING_BIASES = ("attention.output.bias", "mlp.down.bias")


class Scale(NamedTuple):
    """Factors of one parameter: start, of its first weights; adamw and muon, of its learning rate under either; eps, of
    AdamW's epsilon. All 1 leave it as it is without a transfer."""

    start: float = 1.0
    adamw: float = 1.0
    muon: float = 1.0
    eps: float = 1.0


def scales_of(recipe: Recipe, config: LlamaConfig) -> Mapping[str, Scale]:
    """Returns the factors of a recipe's [transfer] by parameter, none without it. Raises ConfigError as `scales`."""
    wish = recipe.transfer
    return {} if wish is None else scales(config, architecture(wish.base, "transfer.base"), wish.depth_exponent)


def scales(config: LlamaConfig, base: LlamaConfig, depth_exponent: float) -> Mapping[str, Scale]:
    """Returns the factors of every parameter of a model of `config` by name.

    Raises ConfigError when nothing can be transferred: heads of another size, layers of a kind that the base lacks.
    """
    _check_heads(config, base)
    known = {_kind(name): (name, shape) for name, shape in shapes(base).items()}
    found = {}
    for name, shape in shapes(config).items():
        if _kind(name) not in known:
            raise ConfigError(
                f"transfer.base: it has no {_kind(name)}; take a small model with the same kinds of layers"
            )
        base_name, base_shape = known[_kind(name)]
        depth = depth_of(name, config) / depth_of(base_name, base) if _LAYER.search(name) else 1.0
        given = start_std(name, torch.Size(shape), config) / start_std(base_name, torch.Size(base_shape), base)
        found[name] = _scale(name, shape, base_shape, given, depth, depth_exponent)
    return found


def _scale(
    name: str, shape: tuple[int, ...], base: tuple[int, ...], given: float, depth: float, exponent: float
) -> Scale:
    """Returns the factors of one parameter. given: by how much its first weights are larger than the base's already."""
    wide_out = shape[-1] / base[-1]
    in_branch, behind_branch = depth ** (exponent - 1), depth**-exponent
    if len(shape) == 1 and not name.endswith(TABLES):
        writes = name.endswith(_WRITING_BIASES)
        rate = in_branch * (behind_branch if writes else 1.0)
        return Scale(adamw=rate, eps=1 / wide_out * (1.0 if writes else behind_branch))
    if name.endswith(TABLES):
        return Scale(start=1 / given, eps=1 / wide_out)
    wide_in, wide_out = wide_out, shape[-2] / base[-2]
    if name.endswith(OUTPUTS):
        return Scale(start=1 / wide_in / given, adamw=in_branch / wide_in, eps=behind_branch)
    writes = writes_to_stream(name)
    rate = in_branch * (behind_branch if writes else 1.0)
    plain = math.sqrt(max(shape[-2:]) / max(base[-2:]))  # by which the base's rule for Muon grows
    return Scale(
        start=wide_in**-0.5 * (behind_branch if writes else 1.0) / given,
        adamw=rate / wide_in,
        muon=rate * math.sqrt(wide_out / wide_in) / plain,
        eps=1 / wide_out * (1.0 if writes else behind_branch),
    )


def _kind(name: str) -> str:
    """Returns a parameter's name without the number of its layer."""
    return _LAYER.sub("layers.*.", name)


def _check_heads(config: LlamaConfig, base: LlamaConfig) -> None:
    heads = [(config.text.head_dim, base.text.head_dim)]
    if config.vision is not None and base.vision is not None:
        heads.append((config.vision.width // config.vision.n_heads, base.vision.width // base.vision.n_heads))
    for size, base_size in heads:
        if size != base_size:
            raise ConfigError(
                f"transfer.base: heads of {size} numbers, those of the base of {base_size}; keep their size and change "
                f"their number, since attention divides by its root"
            )
