"""What tuning by factors (LoRA, QLoRA) takes of one device, in bytes, before anything is loaded.

In: a configuration, which maps have factors, how the base is stored, and the tokens of a batch. Out: a `Footprint`.
What stays is exact, as a test on a model of Scout's shape shows; what comes and goes while a layer is computed again
and passed back is estimated from what was measured there. The embedding, and what goes into each layer, wait in the
host's memory; towers that the batches have no room for are left on disk. Every rank has the whole base.
Not here: tuning of all weights, whose arithmetic is `training`'s.
"""

from collections.abc import Set
from dataclasses import asdict, dataclass

from puna.card import memory
from puna.card.memory import INT4, Scheme
from puna.card.params import SEEN_BY_TILES, Part
from puna.config import LlamaConfig
from puna.plan.shares import every_weight

DTYPE_BYTES = 2
FACTOR_BYTES = 5 * 4
"""Of one number of a factor: itself, its gradient, its master and two moments, float32."""

PASS_STATES = 40
"""States [T D] that live at once where a layer is passed back, at most: 26 to 30 were measured at 1/8 of Scout's width,
on 1,024 and 2,048 tokens, with one expert written out, which weighs more where the width is more than the tokens."""

HEAD_COPIES = 3 * 4
"""Bytes of one logit: it, its gradient, and its exponential, float32."""

BASES = {"qlora": Scheme(small=dict.fromkeys(memory.DECODER, INT4)), "lora": memory.SCHEMES["none"]}
"""How the base is stored: the whole decoder in int4, or as it comes."""

USUAL: frozenset[Part] = frozenset({"attention", "shared_experts", "dense"})


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

    def parts(self) -> dict[str, int]:
        """Returns the bars of a drawing; they add up to `device`."""
        return {"base": self.base, "factors": self.factors, "passes": max(self.one_pass, self.logits)}

    def to_json(self) -> dict[str, int]:
        """Returns JSON values."""
        return asdict(self) | {"device": self.device}


def footprint(
    config: LlamaConfig,
    *,
    base: Scheme,
    rank: int,
    tokens: int,
    chunk: int = 256,
    parts: Set[Part] = USUAL,
    with_vision: bool = False,
) -> Footprint:
    """Returns what tuning takes whose batches have `tokens` tokens, and whose loss `chunk` rows of logits at a time."""
    text = config.text
    held = embedding = n_factors = 0
    for weight in every_weight(config):
        if weight.part in SEEN_BY_TILES and not with_vision:
            continue
        if weight.part == "embedding":
            embedding += weight.size * DTYPE_BYTES
            continue
        held += memory.weight_bytes(weight, base, DTYPE_BYTES, text.n_layers)
        if weight.part in parts and len(weight.shape) > 1:
            n_out, n_in = weight.shape[-2:]
            n_factors += weight.size // (n_out * n_in) * rank * (n_out + n_in)
    state = tokens * text.width * DTYPE_BYTES
    return Footprint(
        base=held,
        factors=n_factors * FACTOR_BYTES,
        one_pass=PASS_STATES * state,
        logits=min(chunk, tokens) * text.vocab_size * HEAD_COPIES + text.vocab_size * text.width * DTYPE_BYTES,
        host=embedding + text.n_layers * state,
    )
