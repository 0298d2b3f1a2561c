"""What one forward needs beside weights, keys and values while a model serves: how many tokens, and bytes of each.

In: a share of a model, and what is to be served. Out: tokens of a step, and the most bytes that come and go with it.
There are two ways of running. torch keeps what flows in the model's own numbers and frees it layer by layer: that is an
estimate. The C++ kernels of a processor keep rows in float32 for all parts of a layer at once, and beside them each
row as the products read it ("record"): that is what they ask for, to the byte.

Source of the kernels' rows: `Forward.prepare` in kernels/native/decoder.h, `record_bytes` in matmul.h.
"""

from puna.card.memory import LOGIT_BYTES, Scheme
from puna.card.params import Part
from puna.config import LlamaConfig, TextConfig

MAX_STEP_TOKENS = 2048
"""Tokens of one forward, as `engine.MAX_STEP_TOKENS`."""

LANES, GROUP, LINE = 16, 32, 64
"""Of the C++ kernels: what rows are filled up to, inputs that share a scale, bytes that records are filled up to."""

WIDE = 4
"""Bytes of a float32 number."""

POINTERS = 120
"""Bytes of a token's addresses, choices and scores in the C++ kernels."""


def step_tokens(text: TextConfig, sequences: int, context: int) -> int:
    """Returns the most tokens of a step: a whole one, or of each sequence as many as it can store at once.

    Chunked layers keep one chunk of each sequence and no more is planned, so a prompt is read chunk by chunk then.
    """
    chunk_len = text.chunk_len if text.chunk_len is not None and text.rope_layers else context
    return max(1, min(MAX_STEP_TOKENS, sequences * min(context, chunk_len)))


def torch_bytes(config: LlamaConfig, n_tokens: int, n_logits: int, float_bytes: int = 2) -> int:
    """Estimates what torch keeps in a step of `n_tokens` tokens.

    That is the stream and the widest layer: either queries, keys, values and their mixture, or rows of experts with
    gate, up and their product; or in the end `n_logits` rows of logits. Attention is taken as one that keeps no scores.
    """
    text = config.text
    stream = 2 * text.width  # what flows, and its norm
    attention = 2 * (text.n_heads + text.n_kv_heads) * text.head_dim
    routed = text.n_active_experts * (text.width + 3 * text.expert_width) + 3 * text.expert_width
    dense = 3 * text.dense_width
    widest = max(attention, routed if text.moe_layers else 0, dense if len(text.moe_layers) < text.n_layers else 0)
    layers = n_tokens * (stream + widest) * float_bytes
    return max(layers, n_tokens * stream * float_bytes + n_logits * text.vocab_size * LOGIT_BYTES)


def kernels_bytes(config: LlamaConfig, n_tokens: int, n_logits: int, scheme: Scheme, float_bytes: int = 2) -> int:
    """Returns what the C++ kernels keep in a step of `n_tokens` tokens, of which `n_logits` get logits.

    What small weights multiply is int8 with scales.
    """
    text = config.text
    D, H = text.width, text.head_dim
    queries, keys = text.n_heads * H, text.n_kv_heads * H
    has_dense, k = len(text.moe_layers) < text.n_layers, text.n_active_experts if text.moe_layers else 0
    beside = max(text.expert_width if text.moe_layers else 0, text.dense_width if has_dense else 0)

    def row(n: int) -> int:
        return _padded(n, LANES) * WIDE

    def record(n: int, part: Part) -> int:
        n = _padded(n, GROUP)
        return _padded(n + n // GROUP * 8 if part in scheme.small else n * float_bytes, LINE)

    rows = 2 * row(D) + row(queries) + 2 * row(keys) + row(2 * H)  # stream, norm; queries, keys, values; angles
    rows += text.n_heads * (row(H) + _padded(H, 2) * WIDE)  # the mixture, and queries as attention reads them
    rows += k * row(2 * text.expert_width) + row(2 * beside) + row(text.n_experts)
    plain = max(record(D, "attention"), record(queries, "attention"), record(D, "routed_experts"))
    records = plain + _padded(_padded(D, GROUP) * WIDE, LINE) + record(D, "shared_experts")  # the router's is wide
    records += k * record(text.expert_width, "routed_experts") + record(beside, "shared_experts")
    return n_tokens * (rows + records + POINTERS) + n_logits * text.vocab_size * LOGIT_BYTES


def _padded(n: int, unit: int) -> int:
    return -(-n // unit) * unit
