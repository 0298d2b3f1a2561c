"""Tiles are seen once, together, and named by what they show."""

import pytest
import torch

from puna.engine.pictures import Features, Pictures, digest
from puna.engine.request import Request
from puna.model.transformer import Llama
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids


def pictures(seed: int, n_tiles: int, n_before: int = 3) -> Pictures:
    tiles = torch.rand(n_tiles, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    ids = random_ids(n_before, 1)
    for _ in range(n_tiles):
        ids += [PATCH_ID] * TILE_TOKENS + [7]
    made = Pictures.of(Request(ids=ids, tiles=tiles), PATCH_ID, TILE_TOKENS)
    assert made is not None
    return made


def test_a_stretch_of_a_prompt_knows_its_patches_and_tiles() -> None:
    made = pictures(1, 3)  # patches at 3..6, 8..11, 13..16
    assert list(made.patches(0, 3)) == []
    assert list(made.patches(5, 9)) == [2, 3, 4]
    assert [list(made.tile_indices(*stretch)) for stretch in ((0, 3), (5, 7), (5, 9), (8, 17), (17, 30))] == [
        [],
        [0],
        [0, 1],
        [1, 2],
        [],
    ]
    assert made.digests_between(5, 9) == made.digests[:2]


def test_a_digest_names_content_and_format() -> None:
    tile = torch.rand(3, 16, 16)
    other = tile.clone()
    other[0, 0, 0] += 1e-6
    names = [digest(each) for each in (tile, other, tile.double(), tile.bfloat16(), tile.transpose(1, 2))]
    assert len(set(names)) == 5
    assert digest(tile.clone()) == names[0]
    assert digest(tile[None].expand(2, 3, 16, 16)[1]) == names[0]


def test_features_of_any_stretches_are_those_of_the_tower(model: Llama) -> None:
    features, one, other = Features(model), pictures(1, 3), pictures(2, 2)
    expected = [model.embed_tiles(each.tiles) for each in (one, other)]
    gathered = features.gather([(one, 5, 12), (other, 0, 3), (other, 0, 99)])
    assert gathered is not None
    torch.testing.assert_close(gathered, torch.cat([expected[0][2:8], expected[1]]), rtol=1e-5, atol=1e-6)
    assert features.gather([(one, 0, 3)]) is None
    assert features.gather([]) is None


def test_tiles_of_several_prompts_are_seen_together_and_once(model: Llama) -> None:
    features, one, other = Features(model), pictures(1, 3), pictures(2, 2)
    n_seen: list[int] = []
    assert model.vision is not None
    with model.vision.register_forward_hook(lambda *call: n_seen.append(len(call[1][0]))):
        features.gather([(one, 0, 5), (other, 0, 5), (one, 0, 5)])
        features.gather([(one, 5, 99), (other, 5, 99), (pictures(1, 3), 0, 99)])
    assert n_seen == [5]
    features.forget()
    with model.vision.register_forward_hook(lambda *call: n_seen.append(len(call[1][0]))):
        features.gather([(other, 0, 99)])
    assert n_seen == [5, 2]


@pytest.mark.parametrize("n_kept", [0, 1, 2])
def test_features_are_bounded_and_the_coldest_go_first(model: Llama, n_kept: int) -> None:
    tile_bytes = TILE_TOKENS * 32 * 4
    features, made = Features(model, max_bytes=n_kept * tile_bytes), [pictures(seed, 1) for seed in range(4)]
    for each in made:
        gathered = features.gather([(each, 0, 99)])
        torch.testing.assert_close(gathered, model.embed_tiles(each.tiles), rtol=1e-5, atol=1e-6)
        assert features.n_bytes <= n_kept * tile_bytes
    n_seen: list[int] = []
    assert model.vision is not None
    with model.vision.register_forward_hook(lambda *call: n_seen.append(1)):
        for each in made[::-1][:n_kept]:
            features.gather([(each, 0, 99)])
    assert not n_seen
