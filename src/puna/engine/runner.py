"""One forward over a batch: `Runner` is what the engine asks, `TorchRunner` the plain one that runs everywhere.

In: a `Batch`. Out: logits of the rows that are wanted; keys and values are stored on the way.
Not here: what is in the batch and why (`engine`, `scheduler`), what becomes of logits (`sampler`).
"""

from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from puna.engine import native
from puna.engine.batch import Batch
from puna.engine.cache import KVCache, PagedStore
from puna.engine.ranks import LeadingCache, LeadingRunner
from puna.model.transformer import Llama


class Runner(Protocol):
    """Runs one model over one cache."""

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        ...


class TorchRunner:
    """The model as it is written, on any device and in any number format: the twin of every faster runner."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        store = PagedStore(self._cache, batch.entries)
        hidden = self._model.hidden(batch.ids, batch.positions, store, batch.features)
        if batch.routes is not None:
            for layer, route in zip(sorted(self._model.config.text.moe_layers), hidden.routes, strict=True):
                batch.routes[layer] = route.experts
        return self._model.logits(hidden.states[batch.wanted])  # R V


def tells_routes(runner: Runner) -> bool:
    """Returns whether a runner fills in `Batch.routes`."""
    return isinstance(runner, TorchRunner | native.NativeRunner)


def for_model(model: Llama, cache: KVCache) -> Runner:
    """Returns the fastest runner that fits this model and cache."""
    if isinstance(cache, LeadingCache):
        return LeadingRunner(TorchRunner(model, cache), cache)
    if native.fits(model, cache):
        return native.NativeRunner(model, cache)
    plain = TorchRunner(model, cache)
    if cache.keys[0].device.type != "cuda" or find_spec("triton") is None:
        return plain
    from puna.engine import cuda_graphs, trial

    if not cuda_graphs.fits(model, cache):
        return plain
    return trial.proven(lambda: cuda_graphs.GraphRunner(model, cache), plain, cache, model.config.text.vocab_size)
