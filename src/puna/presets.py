"""The released models and the one that ships, as configurations.

Source: docs/sources.md; sizes of Scout, Maverick and Llama Guard 4 as published in their configuration files.
"""

from dataclasses import replace

from puna.config import (
    MAX_TILES,
    VISION_ROPE_THETA,
    LlamaConfig,
    QueryTemperature,
    RopeScaling,
    TextConfig,
    VisionConfig,
)

_TOWER = VisionConfig(
    tile_size=336,
    patch_size=14,
    width=1408,
    n_layers=34,
    n_heads=16,
    mlp_width=5632,
    adapter_width=4096,
    output_width=4096,
    shuffle_ratio=0.5,
    rope_theta=VISION_ROPE_THETA,
    norm_eps=1e-5,
    max_tiles=MAX_TILES,
)

_SCOUT_TEXT = TextConfig(
    width=5120,
    n_layers=48,
    n_heads=40,
    n_kv_heads=8,
    head_dim=128,
    vocab_size=202_048,
    context_len=10_485_760,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=16, low_factor=1, high_factor=1, original_context=8192),
    rope_layers=frozenset(i for i in range(48) if (i + 1) % 4),
    chunk_len=8192,
    query_temperature=QueryTemperature(floor_len=8192, scale=0.1),
    qk_norm=True,
    moe_layers=frozenset(range(48)),
    n_experts=16,
    n_active_experts=1,
    expert_width=8192,
    dense_width=16384,
)

SCOUT = LlamaConfig(
    text=_SCOUT_TEXT,
    vision=_TOWER,
    bos_id=200_000,
    stop_ids=(200_001, 200_007, 200_008),
    pad_id=200_018,
    image_start_id=200_080,
    image_end_id=200_081,
    patch_id=200_092,
)

MAVERICK = replace(
    SCOUT,
    text=replace(
        _SCOUT_TEXT,
        context_len=1_048_576,
        rope_scaling=None,
        qk_norm=False,
        moe_layers=frozenset(range(1, 48, 2)),
        n_experts=128,
    ),
)

# Dense: what pruning the routed experts from Scout leaves. Every layer rotates, none is chunked.
GUARD4 = replace(
    SCOUT,
    text=replace(
        _SCOUT_TEXT,
        context_len=163_840,
        rope_layers=frozenset(range(48)),
        chunk_len=None,
        query_temperature=None,
        moe_layers=frozenset(),
        n_experts=0,
        n_active_experts=0,
        dense_width=8192,
    ),
)

# Scout's shape in miniature: MoE in every layer, chunks of 128 tokens, a vision tower of 96-pixel tiles.
_CRIA_VOCAB, _CRIA_SPECIALS = 12_288, 64
_CRIA_BASE = _CRIA_VOCAB - _CRIA_SPECIALS

CRIA = LlamaConfig(
    text=replace(
        _SCOUT_TEXT,
        width=192,
        n_layers=8,
        n_heads=6,
        n_kv_heads=2,
        head_dim=32,
        vocab_size=_CRIA_VOCAB,
        context_len=4096,
        rope_scaling=None,
        rope_layers=frozenset(i for i in range(8) if (i + 1) % 4),
        chunk_len=128,
        query_temperature=QueryTemperature(floor_len=1024, scale=0.1),
        moe_layers=frozenset(range(8)),
        n_experts=8,
        expert_width=192,
        dense_width=384,
        rope_theta=10_000.0,
    ),
    vision=replace(
        _TOWER,
        tile_size=96,
        patch_size=12,
        width=192,
        n_layers=4,
        n_heads=6,
        mlp_width=768,
        adapter_width=256,
        output_width=256,
        max_tiles=4,
    ),
    bos_id=_CRIA_BASE,
    stop_ids=(_CRIA_BASE + 1, _CRIA_BASE + 7, _CRIA_BASE + 8),
    pad_id=_CRIA_BASE + 12,
    image_start_id=_CRIA_BASE + 13,
    image_end_id=_CRIA_BASE + 14,
    patch_id=_CRIA_BASE + 18,
)

PRESETS = {"scout": SCOUT, "maverick": MAVERICK, "guard4": GUARD4, "cria": CRIA}
