"""Cutting and merging of patches, against torch's own unfold and against the layout written out."""

import torch

from puna.model.vision import VisionTower, cut_patches, pixel_shuffle
from puna.presets import CRIA


def test_patches_are_those_of_unfold() -> None:
    tiles = torch.randn(2, 3, 12, 12)
    expected = torch.nn.functional.unfold(tiles, kernel_size=4, stride=4).transpose(1, 2)
    assert torch.equal(cut_patches(tiles, 4), expected)


def test_pixel_shuffle_joins_squares_row_by_row() -> None:
    x = torch.arange(16).view(1, 16, 1)
    assert pixel_shuffle(x, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_tiles_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    assert CRIA.vision is not None
    tower = VisionTower(CRIA.vision)
    torch.nn.init.normal_(tower.class_token)
    torch.nn.init.normal_(tower.positions)
    tiles = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        together, alone = tower(tiles), tower(tiles[1:2])
    assert together.shape == (3, 16, 256)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)  # float32 sums in another order
