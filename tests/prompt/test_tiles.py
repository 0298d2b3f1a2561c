"""Tiles and their ids, bit for bit against Meta's preprocessing."""

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from puna.errors import PromptError
from puna.prompt.tiles import Grid, choose_grid, cut, fitted_size, tile_ids
from puna.prompt.vocab import IMAGE, IMAGE_END, IMAGE_START, PATCH, TILE_X_SEPARATOR, TILE_Y_SEPARATOR

MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16")

GEOMETRIES = ((96, 4), (336, 16), (48, 9), (96, 4), (64, 7))

SPECIAL = {IMAGE_START: 1, IMAGE_END: 2, IMAGE: 3, PATCH: 4, TILE_X_SEPARATOR: 5, TILE_Y_SEPARATOR: 6}


def _noise(mode: str, width: int, height: int, generator: random.Random) -> Image.Image:
    """A picture of random pixels; I and F also hold values outside 0..255, I;16 the whole range of 16 bits."""
    depth = {"L": 1, "LA": 2, "RGBA": 4, "CMYK": 4, "I;16": 2}
    if mode in depth:
        return Image.frombytes(mode, (width, height), generator.randbytes(width * height * depth[mode]))
    colours = Image.frombytes("RGB", (width, height), generator.randbytes(width * height * 3))
    if mode in ("I", "F"):
        return colours.convert("L").convert(mode).point(lambda value: value * 1.5 - 50)
    if mode in ("P", "PA"):
        return colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).convert(mode)
    return colours.convert(mode)


def _metas_tiles(meta: SimpleNamespace, image: Image.Image, size: int, limit: int) -> tuple[Tensor, tuple[int, int]]:
    """What Meta's chat format does with one picture between opening it and writing its ids."""
    image = meta.chat_format.convert_image_to_rgb(image)
    tiles, grid = meta.preprocess.VariableSizeImageTransform(size)(image, max_num_chunks=limit)
    if len(tiles) > 1:
        whole = meta.preprocess.ResizeNormalizeImageTransform(size, size)(image)
        tiles = torch.cat((tiles, whole.unsqueeze(0)))
    return tiles, grid


def test_300_random_sizes_and_modes_equal_metas_pixels(meta: SimpleNamespace) -> None:
    generator = random.Random(0)
    sizes = [(1, 1), (1, 5000), (5000, 1), (336, 336), (672, 337), (96, 97)]
    sizes += [(int(2 ** generator.uniform(0, 9.5)), int(2 ** generator.uniform(0, 9.5))) for _ in range(294)]
    for index, (width, height) in enumerate(sizes):
        mode, (size, limit) = MODES[index % len(MODES)], GEOMETRIES[index % len(GEOMETRIES)]
        image = _noise(mode, width, height, generator)
        expected, grid = _metas_tiles(meta, image, size, limit)
        ours = cut(image, tile_size=size, max_tiles=limit)
        assert ours.grid == tuple(grid), (mode, width, height, size)
        assert torch.equal(ours.pixels, expected), (mode, width, height, size)


def test_the_canvas_equals_metas_where_candidates_nearly_tie(meta: SimpleNamespace) -> None:
    generator = random.Random(1)
    for size, limit in GEOMETRIES:
        reference = meta.preprocess.VariableSizeImageTransform(size)
        canvases = torch.tensor(reference.find_supported_resolutions(limit, size))
        for _ in range(400):
            width = size * generator.randint(1, 6) + generator.randint(-1, 1)
            height = generator.choice((width * generator.randint(1, 8), size * generator.randint(1, 6)))
            width, height = generator.sample((width, height + generator.randint(-1, 1)), 2)
            expected = reference.get_best_fit((width, height), canvases)
            ours = choose_grid(width, height, tile_size=size, max_tiles=limit)
            assert (ours.columns * size, ours.rows * size) == expected, (width, height, size)


@pytest.mark.parametrize(
    ("size", "grid", "fitted"),
    [
        ((1, 1), Grid(1, 1), (96, 96)),
        ((96, 96), Grid(1, 1), (96, 96)),
        ((97, 96), Grid(1, 2), (97, 96)),
        ((1, 5000), Grid(4, 1), (1, 384)),
        ((5000, 1), Grid(1, 4), (384, 1)),
        ((1000, 1000), Grid(2, 2), (192, 192)),
        ((300, 100), Grid(1, 3), (288, 96)),
        ((64, 64), Grid(1, 1), (96, 96)),
    ],
)
def test_known_sizes_get_the_canvas_and_the_scale_that_the_rule_says(
    size: tuple[int, int], grid: Grid, fitted: tuple[int, int]
) -> None:
    assert choose_grid(*size, tile_size=96, max_tiles=4) == grid
    assert fitted_size(size, (grid.columns * 96, grid.rows * 96), 96) == fitted


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), limit=st.integers(1, 16))
@settings(max_examples=200, deadline=None)
def test_a_picture_always_fits_its_canvas_and_touches_a_side(width: int, height: int, limit: int) -> None:
    grid = choose_grid(width, height, tile_size=96, max_tiles=limit)
    canvas = (grid.columns * 96, grid.rows * 96)
    fitted = fitted_size((width, height), canvas, 96)
    assert 1 <= grid.rows * grid.columns <= limit
    assert 1 <= fitted[0] <= canvas[0] and 1 <= fitted[1] <= canvas[1]
    assert fitted[0] <= max(width, 96) and fitted[1] <= max(height, 96)
    assert fitted[0] == min(max(width, 96), canvas[0]) or fitted[1] == min(max(height, 96), canvas[1])


def test_tiles_are_in_reading_order_and_the_whole_picture_comes_last() -> None:
    image = Image.new("RGB", (192, 192))
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for index, colour in enumerate(colours):
        image.paste(colour, (96 * (index % 2), 96 * (index // 2), 96 * (index % 2) + 96, 96 * (index // 2) + 96))
    tiles = cut(image, tile_size=96, max_tiles=4)
    assert tiles.pixels.shape == (5, 3, 96, 96)
    assert tiles.pixels.dtype == torch.float32
    for index, colour in enumerate(colours):
        assert tiles.pixels[index, :, 50, 50].tolist() == [channel / 127.5 - 1 for channel in colour]
    corners = [tiles.pixels[4, :, 10 + 76 * (index // 2), 10 + 76 * (index % 2)] for index in range(4)]
    assert [corner.tolist() for corner in corners] == [[channel / 127.5 - 1 for channel in c] for c in colours]


def test_padding_is_black_at_the_right_and_bottom() -> None:
    tiles = cut(Image.new("RGB", (60, 120), (255, 255, 255)), tile_size=96, max_tiles=4)
    assert tiles.grid == (2, 1)
    assert tiles.pixels[0, :, :, 60:].unique().tolist() == [-1]
    assert tiles.pixels[1, :, 24:, :].unique().tolist() == [-1]
    assert tiles.pixels[1, :, :24, :60].unique().tolist() == [1]


def test_rgba_lies_on_white() -> None:
    tiles = cut(Image.new("RGBA", (96, 96), (0, 0, 0, 0)), tile_size=96, max_tiles=4)
    assert tiles.pixels.unique().tolist() == [1]


def test_an_empty_picture_and_an_unknown_mode_are_refused() -> None:
    with pytest.raises(PromptError, match="0 x 5"):
        cut(Image.new("RGB", (0, 5)), tile_size=96, max_tiles=4)
    with pytest.raises(PromptError, match="mode 'La'"):
        cut(Image.new("La", (5, 5)), tile_size=96, max_tiles=4)


# Ids --------------------------------------------------------------------------------------------------------------


def test_one_tile_has_no_separators() -> None:
    assert tile_ids(Grid(1, 1), 2, SPECIAL) == [1, 3, 4, 4, 2]


def test_a_grid_has_separators_between_columns_and_after_rows() -> None:
    assert tile_ids(Grid(2, 2), 1, SPECIAL) == [1, 4, 5, 4, 6, 4, 5, 4, 6, 3, 4, 2]
    assert tile_ids(Grid(2, 1), 1, SPECIAL) == [1, 4, 6, 4, 6, 3, 4, 2]
    assert tile_ids(Grid(1, 3), 1, SPECIAL) == [1, 4, 5, 4, 5, 4, 6, 3, 4, 2]


@pytest.mark.parametrize("grid", [Grid(rows, columns) for rows in range(1, 5) for columns in range(1, 5)])
def test_the_number_of_ids_follows_the_formula(grid: Grid) -> None:
    local = grid.rows * grid.columns
    ids = tile_ids(grid, 144, SPECIAL)
    assert len(ids) == (147 if local == 1 else (local + 1) * 144 + local + 3)
    assert ids.count(4) == grid.n_tiles * 144


def test_sixteen_tiles_take_2467_ids() -> None:
    assert len(tile_ids(Grid(4, 4), 144, SPECIAL)) == 2467


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 3), Grid(3, 1), Grid(4, 4), Grid(2, 5)])
def test_ids_equal_metas(grid: Grid, meta: SimpleNamespace) -> None:
    side = SimpleNamespace(width=14, height=14)
    arguments = SimpleNamespace(
        patch_size=side, pixel_shuffle_ratio=0.5, image_size=SimpleNamespace(width=336, height=336)
    )
    reference = meta.chat_format.ChatFormat(SimpleNamespace(special_tokens=SPECIAL), arguments)
    image = meta.chat_format.TransformedImage(torch.zeros(grid.n_tiles, 3, 336, 336), grid)
    assert tile_ids(grid, 144, SPECIAL) == reference._encode_image(image)


def test_a_vocabulary_without_patches_is_refused() -> None:
    with pytest.raises(PromptError, match=r"<\|tile_x_separator\|>"):
        tile_ids(Grid(1, 2), 4, {name: index for name, index in SPECIAL.items() if name != TILE_X_SEPARATOR})
