"""What a forward pass keeps for the way back, in closed form: bytes of a rank and a batch, per layer and for the rest.

In: a configuration, a layout and the shape of a batch. Out: what autograd saves of `model.transformer.Block`, in
microseconds, so that hundreds of layouts can be compared. `tests/reference/activations.py` measures the same on the
model's own code, and a test holds the two together. Experts are taken as evenly loaded; what kernels need besides while
they run is not counted. `scores` says whether attention keeps its scores, as puna's trainer does (`train.banded`), or
computes them again as fused kernels do; `kernels`, that the C++ kernels of a training step run (`kernels.training`):
attention without scores, gate and up of the experts in panels, logits that become their own gradients.
"""

from dataclasses import dataclass

from puna.config import LlamaConfig, TextConfig
from puna.plan.shares import Training

WIDE = 4
"""Bytes of a float32 number, in which norms, softmax and the loss are computed."""

PANEL, LANES, UNIT = 64, 16, 32
"""Of the C++ kernels: rows of an expert that lie together; what widths of heads, and of experts, are multiples of."""


def has_kernels(text: TextConfig) -> bool:
    """Returns whether the C++ kernels of a training step take a decoder of these widths."""
    return text.head_dim % LANES == 0 and text.width % UNIT == 0 and text.expert_width % UNIT == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A batch: `rows` of `row_len` tokens, `tiles`, numbers of `itemsize` bytes, `chunk` rows of logits at a time."""

    rows: int
    row_len: int
    tiles: int = 0
    itemsize: int = 2
    chunk: int = 1024
    scores: bool = True
    kernels: bool = False


class Kept:
    """Bytes that one rank keeps of one batch.

    layer(i)   of decoder layer i, all of it; state: of its input alone, which is what `recompute` keeps
    tower      of the vision tower
    head       of the loss: its gradients, and the logits of a chunk
    """

    def __init__(self, config: LlamaConfig, layout: Training, shape: Shape) -> None:
        self._config, self._layout, self._shape = config, layout, shape
        text = config.text
        tokens = shape.rows * shape.row_len // layout.context
        self._tokens = tokens
        self.state = tokens * text.width * shape.itemsize
        vocabulary = text.vocab_size // layout.tensor
        logits = min(shape.chunk, tokens) * vocabulary * (shape.itemsize + (0 if shape.kernels else 2 * WIDE))
        self.head = self.state + vocabulary * text.width * WIDE + logits
        self.tower = self._tower()

    def layer(self, index: int) -> int:
        """Returns the bytes of one decoder layer; layers of one kind keep as much as each other."""
        text, b = self._config.text, self._shape.itemsize
        norms = 2 * text.width * (WIDE + 2 * b)
        if text.is_moe(index):
            k, width = text.n_active_experts, text.expert_width
            shared = 4 * width // self._layout.tensor * b
            routed = k * (2 * text.width + 4 * width) // self._layout.tensor * b
            if self._shape.kernels:
                last = PANEL * text.n_experts / self._layout.expert / self._tokens  # panels that are not full
                routed = round(3 * k * text.width + 2 * width * (k + last)) // self._layout.tensor * b
            forward = shared + routed + k * 24
        else:
            forward = 4 * text.dense_width // self._layout.tensor * b
        return self._tokens * (norms + self._attention(index) + forward)

    def _attention(self, index: int) -> int:
        """Bytes of a token: rotated or scaled queries and keys, what the product with the output map reads, scores."""
        text, b, tensor = self._config.text, self._shape.itemsize, self._layout.tensor
        N, K, H = text.n_heads // tensor, text.n_kv_heads // tensor, text.head_dim
        normed = (N + K) * (H + 1) * WIDE if text.qk_norm and index in text.rope_layers else 0
        if not self._shape.scores or (self._shape.kernels and self._layout.context == 1):
            return normed + b * (2 * N + 2 * K) * H + N * WIDE
        chunk, row, stretches = text.chunk_len_of(index), self._shape.row_len, self._layout.context
        if stretches > 1:  # keys of all stretches, for each query head its own copy, in float32
            return normed + N * H * (b + WIDE + 2 * stretches * WIDE) + N * row * WIDE
        is_whole = chunk is None or row % chunk > 0 or chunk >= row
        keys, repeated = (row, 1) if is_whole or chunk is None else (2 * chunk, 2)
        return normed + b * (2 * N + 2 * K * repeated) * H + N * keys * (WIDE + b if b < WIDE else WIDE)

    def _tower(self) -> int:
        vision, b = self._config.vision, self._shape.itemsize
        if vision is None or not self._shape.tiles:
            return 0
        tokens, W = vision.n_patches + 1, vision.width
        layer = 5 * b * W + 2 * b * vision.mlp_width + 3 * WIDE * W + WIDE * vision.n_heads * tokens
        ends = vision.n_patches * 3 * vision.patch_size**2 * b + tokens * 2 * b * W
        adapter = vision.tokens_per_tile * (vision.shuffled_width + vision.adapter_width * 2 + vision.output_width) * b
        return self._shape.tiles * (tokens * layer * vision.n_layers + ends + adapter)
