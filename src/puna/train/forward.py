"""One forward of a packed batch through a whole model, as tuning needs it: any base, plain, small or adapted.

In: a model and a `Batch`. Out: states and routes, log-probabilities of targets. Differentiable in whatever trains.
Layers can be computed again on the way back, so that only what goes into each is kept, on a GPU in the host's memory.
The logits of a batch never exist whole.
Not here: what is made of log-probabilities (`supervised`, `preference` ...).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from puna.model.attention import KVStore
from puna.model.mask import Packed
from puna.model.moe import Route
from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Hidden, Llama
from puna.train import next_token
from puna.train.banded import Banded
from puna.train.next_token import RouterLosses, normalise
from puna.train.pack import PADDING, Batch


def hidden(
    model: Llama,
    batch: Batch,
    *,
    recompute: bool = False,
    shown: Tensor | None = None,
    again: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Hidden:
    """Returns the states [T D] of a batch's tokens behind the last norm, and the routes of all MoE layers.

    `shown`, int64 [n], says which of the batch's tiles each place for one shows; None: each its own. What holds while
    layers are computed again, `again` says.
    """
    store = _store(model, batch)
    ids, positions = batch.ids.flatten(), batch.positions.flatten()
    if not (recompute and torch.is_grad_enabled()):
        return model.hidden(ids, positions, store, _features(model, batch, shown))
    text = model.config.text
    x = model.embed(ids, _features(model, batch, shown))  # T D
    rotation = text_rotation(positions, text_frequencies(text).to(x.device))
    scale = text.query_temperature
    temperature = None if scale is None else query_temperature(positions, scale)
    routes = []
    for layer in model.layers:
        with _kept_away(x):
            x, route = checkpoint(
                layer, x, rotation, temperature, store, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
            )
        if route is not None:
            routes.append(route)
    return Hidden(model.norm(x), tuple(routes))


def log_probs(model: Llama, states: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Returns the log-probability in nats of each target, float32 [R], of states [R D] and targets int64 [R].

    `chunk` rows of logits exist at a time; on the way back they are made again.
    """
    parts = [
        checkpoint(_log_probs, model, states[rows], targets[rows], use_reentrant=False)
        for rows in (slice(first, first + chunk) for first in range(0, len(targets), chunk))
    ]
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def router_losses(routes: Sequence[Route], batch: Batch) -> RouterLosses:
    """Returns the router's losses and the load of each expert, of tokens that are not padding."""
    if not routes:
        zero = torch.zeros((), device=batch.ids.device)
        return RouterLosses(zero, zero, zero.new_zeros(0, 0))
    logits = torch.stack([route.logits for route in routes]).float()  # L T E
    experts = torch.stack([route.experts for route in routes])  # L T k
    return next_token.router_losses(logits, experts, batch.documents.flatten() != PADDING)


def _log_probs(model: Llama, states: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(model.logits(states), targets, reduction="none")


def _features(model: Llama, batch: Batch, shown: Tensor | None) -> Tensor | None:
    if not batch.n_tiles or model.vision is None:
        return None
    with sdpa_kernel(SDPBackend.MATH):  # as in `next_token`
        features = model.embed_tiles(normalise(batch.tiles))  # I*P D
    return features if shown is None else features.view(len(batch.tiles), -1, features.shape[-1])[shown].flatten(0, 1)


def _store(model: Llama, batch: Batch) -> KVStore:
    kind = Packed if batch.ids.is_cuda else Banded  # a GPU's kernels keep no scores; on a processor bands are faster
    return kind(model.config.text, batch.positions, batch.documents)


def _kept_away(x: Tensor) -> AbstractContextManager[object]:
    """What goes into a layer waits for the way back in the host's memory, where there is another one."""
    return save_on_cpu(pin_memory=True) if x.is_cuda else nullcontext()
