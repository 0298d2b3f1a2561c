"""What defines a Llama 4: sizes, layer kinds and constants, as frozen values.

`LlamaConfig` is the only description of a model that the rest of the code sees. Not here: the sizes of released models
(`presets`) and the files in which they are published (`weights/configs`).

Source of every constant: docs/sources.md.
"""

from dataclasses import dataclass

from puna.errors import ConfigError

MAX_TILES = 16  # of one picture, without the global tile; Source: llama-models `models/llama4/preprocess.py`
VISION_ROPE_THETA = 10_000.0  # no published file names it; Source: llama-models `models/llama4/vision/encoder.py`


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Stretching of long RoPE wavelengths ("llama3" rule). Wavelengths over `original_context / low_factor` are divided
    by `factor`, those under `original_context / high_factor` are kept, and a band between them is blended."""

    factor: float
    low_factor: float
    high_factor: float
    original_context: int

    def __post_init__(self) -> None:
        require(self.factor >= 1, "rope_scaling.factor", self.factor, "at least 1")
        require(
            self.high_factor >= self.low_factor > 0, "rope_scaling.high_factor", self.high_factor, ">= low_factor > 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryTemperature:
    """Queries of NoPE layers grow with position: 1 + scale * ln(floor((position + 1) / floor_len) + 1)."""

    floor_len: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The decoder. Layer kinds are sets of layer indices, computed once here: nobody else derives them.

    `rope_layers` rotate queries and keys and, when `chunk_len` is set, see only their own chunk; all others are
    global, without positions. `moe_layers` hold routed experts plus one shared expert; all others are dense.
    """

    width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_len: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_layers: frozenset[int]
    chunk_len: int | None
    query_temperature: QueryTemperature | None
    qk_norm: bool
    moe_layers: frozenset[int]
    n_experts: int
    n_active_experts: int
    expert_width: int
    dense_width: int

    def __post_init__(self) -> None:
        for field in ("width", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_len"):
            require(getattr(self, field) > 0, field, getattr(self, field), "positive")
        require(
            self.n_heads % self.n_kv_heads == 0, "n_kv_heads", self.n_kv_heads, f"a divisor of {self.n_heads} heads"
        )
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, since RoPE turns pairs")
        require(self.chunk_len is None or self.chunk_len > 0, "chunk_len", self.chunk_len, "positive, or null for none")
        for field in ("rope_layers", "moe_layers"):
            layers = getattr(self, field)
            require(layers <= set(range(self.n_layers)), field, sorted(layers), f"within 0..{self.n_layers - 1}")
        if self.moe_layers:
            require(self.n_experts > 0, "n_experts", self.n_experts, "positive when there are MoE layers")
            k = self.n_active_experts
            require(1 <= k <= self.n_experts, "n_active_experts", k, f"within 1..{self.n_experts}")

    def chunk_len_of(self, layer: int) -> int | None:
        """Returns the chunk that a query of this layer is confined to, or None where it sees its whole document."""
        return self.chunk_len if layer in self.rope_layers else None

    def is_moe(self, layer: int) -> bool:
        return layer in self.moe_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision tower: one square tile in, `tokens_per_tile` vectors out, each of `output_width`."""

    tile_size: int
    patch_size: int
    width: int
    n_layers: int
    n_heads: int
    mlp_width: int
    adapter_width: int
    output_width: int
    shuffle_ratio: float
    rope_theta: float
    norm_eps: float
    max_tiles: int

    def __post_init__(self) -> None:
        require(self.tile_size % self.patch_size == 0, "patch_size", self.patch_size, f"a divisor of {self.tile_size}")
        require(
            self.grid % self.shuffle == 0, "shuffle_ratio", self.shuffle_ratio, f"one that divides {self.grid} patches"
        )
        require(self.width % (4 * self.n_heads) == 0, "n_heads", self.n_heads, "one that leaves heads a multiple of 4")

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def shuffle(self) -> int:
        """Patches along one side that pixel shuffle merges into one token."""
        return round(1 / self.shuffle_ratio)

    @property
    def n_patches(self) -> int:
        return self.grid**2

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // self.shuffle) ** 2

    @property
    def shuffled_width(self) -> int:
        """Width of a token after pixel shuffle, where the adapter begins."""
        return self.width * self.shuffle**2


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """A whole model. `vision` is None for text-only checkpoints. Ids are those of the checkpoint's own vocabulary."""

    text: TextConfig
    vision: VisionConfig | None
    bos_id: int
    stop_ids: tuple[int, ...]
    pad_id: int | None
    image_start_id: int | None
    image_end_id: int | None
    patch_id: int | None

    def __post_init__(self) -> None:
        if self.vision is not None:
            require(self.patch_id is not None, "patch_id", self.patch_id, "set, since the model has a vision tower")


def require(holds: bool, field: str, value: object, wanted: str) -> None:
    """Raises ConfigError naming field, value and what is wanted, unless `holds`."""
    if not holds:
        raise ConfigError(f"{field}: {value!r} must be {wanted}")
