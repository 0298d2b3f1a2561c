"""What tuning by factors over a base in small numbers takes of one device, in bytes, before anything is loaded.

In: a configuration, which maps have factors, and the tokens of a batch. Out: a `Footprint`. What stays is exact, as a
test on a model of Scout's shape shows; what comes and goes while a layer is computed again and passed back is estimated
from what was measured there. The embedding, and what goes into each layer, wait in the host's memory; towers that the
batches have no room for are left on disk.
Not here: tuning of all weights and of several ranks, whose arithmetic is `plan.training`'s.
"""

import math
from dataclasses import dataclass

from puna.adapters.spec import Spec
from puna.config import LlamaConfig
from puna.kernels.formats import GROUP
from puna.model.count import part_of, shapes
from puna.quant.swap import DECODER

DTYPE_BYTES = 2
FACTOR_BYTES = 5 * 4
"""Of one number of a factor: itself, its gradient, its master and two moments, float32."""

PASS_STATES = 40
"""States [T D] that live at once where a layer is passed back, at most: 26 to 30 were measured at 1/8 of Scout's width,
on 1,024 and 2,048 tokens, with one expert written out, which weighs more where the width is more than the tokens."""

HEAD_COPIES = 3 * 4
"""Bytes of one logit: it, its gradient, and its exponential, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on the device: base, factors (with gradients, masters and moments), one_pass (of a layer) and logits (of a
    chunk), which do not live at the same time. host: bytes that wait in the host's memory."""

    base: int
    factors: int
    one_pass: int
    logits: int
    host: int

    @property
    def device(self) -> int:
        """All at once at the worst moment."""
        return self.base + self.factors + max(self.one_pass, self.logits)


def footprint(config: LlamaConfig, spec: Spec, tokens: int, chunk: int, *, with_vision: bool = False) -> Footprint:
    """Returns what QLoRA takes whose batches have `tokens` tokens, and whose loss `chunk` rows of logits at a time.

    The base's matrices are int4, all else and the states bfloat16. Raises ConfigError as `Spec.shapes`.
    """
    text = config.text
    small = rest = embedding = 0
    for name, shape in shapes(config).items():
        n, part = math.prod(shape), part_of(name)
        if part in ("vision", "adapter", "projector") and not with_vision:
            continue
        if part == "embedding":
            embedding += n * DTYPE_BYTES
        elif part in DECODER and len(shape) > 1:
            small += n // 2 + n // GROUP * DTYPE_BYTES
        else:
            rest += n * DTYPE_BYTES
    n_factors = sum(
        math.prod(stack) * spec.rank * (n_out + n_in) for *stack, n_out, n_in in spec.shapes(config).values()
    )
    state = tokens * text.width * DTYPE_BYTES
    return Footprint(
        base=small + rest,
        factors=n_factors * FACTOR_BYTES,
        one_pass=PASS_STATES * state,
        logits=min(chunk, tokens) * text.vocab_size * HEAD_COPIES + text.vocab_size * text.width * DTYPE_BYTES,
        host=embedding + text.n_layers * state,
    )
