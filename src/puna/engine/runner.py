"""One forward over a batch: `Runner` is what the engine asks, `TorchRunner` the plain one that runs everywhere.

In: a `Batch`. Out: logits of the rows that are wanted; keys and values are stored on the way.
Not here: what is in the batch and why (`engine`, `scheduler`), what becomes of logits (`sampler`).
"""

from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from puna.engine import native
from puna.engine.adapted import SplitRunner, deltas_of
from puna.engine.batch import Batch
from puna.engine.cache import KVCache, PagedStore
from puna.engine.ranks import LeadingCache, LeadingRunner
from puna.model.deltas import Adapted, Shelf
from puna.model.transformer import Llama


class Runner(Protocol):
    """Runs one model over one cache."""

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        ...


class TorchRunner:
    """The model as it is written, on any device and in any number format: the twin of every faster runner."""

    def __init__(self, model: Llama, cache: KVCache, shelf: Shelf | None = None) -> None:
        self._model = model
        self._cache = cache
        self._shelf = shelf

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        store = PagedStore(self._cache, batch.entries)
        deltas = deltas_of(batch, self._shelf)
        hidden = self._model.hidden(batch.ids, batch.positions, store, batch.features, deltas)
        if batch.routes is not None:
            for layer, route in zip(sorted(self._model.config.text.moe_layers), hidden.routes, strict=True):
                batch.routes[layer] = route.experts
        states = hidden.states[batch.wanted]  # R D
        return self._model.logits(states, None if deltas is None else deltas.of_rows(batch.wanted))  # R V


def tells_routes(runner: Runner) -> bool:
    """Returns whether a runner fills in `Batch.routes`."""
    return isinstance(runner.fast if isinstance(runner, SplitRunner) else runner, TorchRunner | native.NativeRunner)


def for_model(model: Llama, cache: KVCache, shelf: Shelf | None = None) -> Runner:
    """Returns the fastest runner that fits this model and cache, for batches with the adapters of `shelf` too."""
    plain = TorchRunner(model, cache, shelf)
    if isinstance(cache, LeadingCache):
        return LeadingRunner(plain, cache)
    if any(isinstance(part, Adapted) for part in model.modules()):
        return plain
    if native.fits(model, cache):
        return native.NativeRunner(model, cache, shelf)
    fast = _with_graphs(model, cache, plain)
    return plain if fast is None else fast if shelf is None else SplitRunner(fast, plain, model.config.patch_id)


def _with_graphs(model: Llama, cache: KVCache, plain: TorchRunner) -> Runner | None:
    """Returns the runner on a GPU that replays whole steps, where it fits and is faster than the plain one."""
    if cache.keys[0].device.type != "cuda" or find_spec("triton") is None:
        return None
    from puna.engine import cuda_graphs, trial

    if not cuda_graphs.fits(model, cache):
        return None
    return trial.proven(lambda: cuda_graphs.GraphRunner(model, cache), plain, cache, model.config.text.vocab_size)
