"""What a configuration accepts, refuses and derives."""

from dataclasses import replace

import pytest

from puna.errors import ConfigError
from puna.presets import CRIA, GUARD4, MAVERICK, SCOUT


def test_three_of_four_layers_rotate_and_are_chunked() -> None:
    assert [SCOUT.text.chunk_len_of(i) for i in range(4)] == [8192, 8192, 8192, None]
    assert 47 not in SCOUT.text.rope_layers and len(SCOUT.text.rope_layers) == 36


def test_maverick_alternates_dense_and_expert_layers() -> None:
    assert [MAVERICK.text.is_moe(i) for i in range(4)] == [False, True, False, True]


def test_guard_has_no_chunks_no_experts_and_rotates_everywhere() -> None:
    assert {GUARD4.text.chunk_len_of(i) for i in range(48)} == {None}
    assert not GUARD4.text.moe_layers and len(GUARD4.text.rope_layers) == 48


def test_a_tile_of_the_released_tower_becomes_144_tokens() -> None:
    assert SCOUT.vision is not None
    assert (SCOUT.vision.n_patches, SCOUT.vision.tokens_per_tile, SCOUT.vision.shuffled_width) == (576, 144, 5632)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_kv_heads", 4), ("head_dim", 31), ("chunk_len", 0), ("moe_layers", frozenset({9})), ("n_active_experts", 9)],
)
def test_a_contradiction_is_refused_by_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(CRIA.text, **{field: value})


def test_a_vision_tower_needs_a_patch_id() -> None:
    with pytest.raises(ConfigError, match="patch_id"):
        replace(CRIA, patch_id=None)
