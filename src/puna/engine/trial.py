"""A fast runner on trial: it is taken once it has shown, here and on this model, that it gives what the plain one does.

In: how a fast runner is made, the plain one, and a cache that nobody uses yet. Out: the one to use. Kernels that are
compiled for a device where they are used break with its drivers and libraries (what users of peers report most); then
one is told, and answers stay right.
Not here: how close is close in general (the tests), what runners do.
"""

import warnings
from collections.abc import Callable

import torch

from puna.engine.batch import Batch, Entry
from puna.engine.cache import KVCache
from puna.engine.runner import Runner

TOLERANCE = 0.1
"""Of the spread of the logits: several times what bfloat16 leaves after 48 layers, far from what a wrong chunk, head or
expert does."""


@torch.inference_mode()
def proven(make: Callable[[], Runner], plain: Runner, cache: KVCache, vocab_size: int) -> Runner:
    """Returns what `make` makes if it gives the logits of `plain` for a short prompt and the token behind it.

    Otherwise it warns, with the reason, and returns `plain`. The first blocks of `cache` are written to.
    """
    try:
        fast = make()
        for batch in _batches(cache, vocab_size):
            expected, got = plain.run(batch), fast.run(batch)
            off = (got - expected).abs().max() / expected.std()
            if not off <= TOLERANCE:
                return _declined(plain, f"its logits are off by {off:.2g} of their spread")
    except Exception as error:  # compilers and drivers raise what they like
        return _declined(plain, f"{type(error).__name__}: {error}")
    return fast


def _declined(plain: Runner, reason: str) -> Runner:
    warnings.warn(
        f"the fast kernels do not work here ({reason}): the plain ones are used, more slowly",
        RuntimeWarning,
        stacklevel=3,
    )
    return plain


def _batches(cache: KVCache, vocab_size: int) -> list[Batch]:
    """A prompt of some ids and one more, in the first blocks of both pools."""
    layout, device = cache.layout, cache.keys[0].device
    n_prompt = min(7, (layout.chunk_len or 8) - 1)
    n_blocks = -(-(n_prompt + 1) // layout.block_len)
    blocks = list(range(n_blocks))
    batches = []
    for start, n in ((0, n_prompt), (n_prompt, 1)):
        positions = torch.arange(start, start + n, device=device)
        entry = Entry(n, start, blocks, blocks, 0)
        batches.append(Batch(positions % vocab_size, positions, None, [entry], torch.tensor([n - 1], device=device)))
    return batches
