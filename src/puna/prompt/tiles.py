"""A picture to the square tiles that the vision tower sees, and to the ids that hold their places in a prompt.

In: one PIL image, as it is (decoding, EXIF rotation and transparency are `message.open_image`'s business).
Out: normalised float tiles, in reading order, followed by the whole picture squeezed into one tile when there is more
than one. Pixels equal Meta's preprocessing bit for bit; only PIL does the work, torchvision is not needed.

Two traps kept on purpose: the global tile does not keep the aspect ratio, and scales are compared as float32, which
decides the canvas where two candidates nearly tie.

Source: llama_models 0.3.0, `models/llama4/preprocess.py` (canvas, resize, padding) and `chat_format.py` (ids).
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from puna.errors import PromptError
from puna.prompt.vocab import (
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PATCH,
    TILE_X_SEPARATOR,
    TILE_Y_SEPARATOR,
    special_id,
)

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

MEAN, DEVIATION = 0.5, 0.5
"""Pixels go from 0..1 to -1..1, all channels alike. Source: `_mean` and `_std` in Meta's preprocess."""


class Grid(NamedTuple):
    """How many tiles a picture is cut into."""

    rows: int
    columns: int

    @property
    def n_tiles(self) -> int:
        """Tiles that enter the model: those of the grid, and the global one when the grid has more than one."""
        local = self.rows * self.columns
        return local + (local > 1)


class Tiles(NamedTuple):
    """`pixels` is float32 [I 3 size size] in -1..1: the grid's tiles row by row, then the global tile if any."""

    pixels: Tensor
    grid: Grid


def cut(image: Image.Image, *, tile_size: int, max_tiles: int) -> Tiles:
    """Returns the tiles of `image`, at most `max_tiles` and the global one.

    The picture is shrunk to the chosen canvas, or enlarged up to one tile a side, keeps its aspect ratio, sits in the
    upper left corner and is padded with black. RGBA is laid on white; every other mode becomes RGB as PIL converts it
    (so an alpha channel of LA, PA or a palette is dropped, and values of I, F and I;16 end at 255), as in Meta's code.

    Raises PromptError when the image is empty or PIL cannot convert its mode.
    """
    if min(image.size) < 1:
        raise PromptError(f"image has size {image.width} x {image.height}; both sides must be at least 1 pixel")
    picture = _rgb(image)
    grid = choose_grid(picture.width, picture.height, tile_size=tile_size, max_tiles=max_tiles)
    canvas = Image.new("RGB", (grid.columns * tile_size, grid.rows * tile_size), BLACK)
    canvas.paste(picture.resize(fitted_size(picture.size, canvas.size, tile_size), Image.Resampling.BILINEAR))
    pixels = _split(_normalised(canvas), grid, tile_size)
    if grid.n_tiles > 1:
        whole = picture.resize((tile_size, tile_size), Image.Resampling.BILINEAR)
        pixels = torch.cat((pixels, _normalised(whole).unsqueeze(0)))
    return Tiles(pixels, grid)


def tile_ids(grid: Grid, tokens_per_tile: int, special: Mapping[str, int]) -> list[int]:
    """Returns the ids of one picture: between image_start and image_end, patches in rows, then the global tile.

    Patches of a row are joined by tile_x_separator and closed by tile_y_separator; a single tile has neither. The
    `image` token precedes the last tile, whichever it is. Features go to the `patch` ids only, in the tiles' order.

    Raises PromptError when the vocabulary lacks one of these tokens.
    """
    patches = [special_id(special, PATCH)] * tokens_per_tile
    ids = [special_id(special, IMAGE_START)]
    if grid.n_tiles > 1:
        row = [*patches, special_id(special, TILE_X_SEPARATOR)] * (grid.columns - 1)
        ids += [*row, *patches, special_id(special, TILE_Y_SEPARATOR)] * grid.rows
    return [*ids, special_id(special, IMAGE), *patches, special_id(special, IMAGE_END)]


def choose_grid(width: int, height: int, *, tile_size: int, max_tiles: int) -> Grid:
    """Returns the canvas for a picture: the one that enlarges it least, else the one that shrinks it least.

    Among canvases of the same scale the smallest wins, so the least is padded. The scale is that of the tighter side.
    """
    grids = _grids(max_tiles)
    exact = [min(grid.columns * tile_size / width, grid.rows * tile_size / height) for grid in grids]
    scales: list[float] = torch.tensor(exact, dtype=torch.float64).to(torch.float32).tolist()
    best = min((scale for scale in scales if scale >= 1), default=max(scales))
    candidates = [grid for grid, scale in zip(grids, scales, strict=True) if scale == best]
    return min(candidates, key=lambda grid: grid.rows * grid.columns)


def fitted_size(size: tuple[int, int], canvas: tuple[int, int], tile_size: int) -> tuple[int, int]:
    """Returns width and height of a picture fitted into `canvas`, never enlarged beyond one tile a side.

    The tighter side fills its limit, the other is rounded down, and no side becomes 0.
    """
    width, height = size
    limit_width = min(max(width, tile_size), canvas[0])
    limit_height = min(max(height, tile_size), canvas[1])
    scale_width, scale_height = limit_width / width, limit_height / height
    if scale_width < scale_height:
        return limit_width, max(min(math.floor(height * scale_width), limit_height), 1)
    return max(min(math.floor(width * scale_height), limit_width), 1), limit_height


@lru_cache
def _grids(max_tiles: int) -> tuple[Grid, ...]:
    """Returns every grid of at most `max_tiles` tiles."""
    return tuple(Grid(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image.load()
        picture = Image.new("RGB", image.size, WHITE)
        picture.paste(image, mask=image.getchannel("A"))
        return picture
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise PromptError(f"image mode {image.mode!r} cannot be turned into RGB; convert the image first") from error


def _normalised(picture: Image.Image) -> Tensor:
    """Returns the pixels of an RGB picture as float32 [3 height width] in -1..1."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = data.view(picture.height, picture.width, 3).permute(2, 0, 1)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(MEAN).div_(DEVIATION)


def _split(pixels: Tensor, grid: Grid, tile_size: int) -> Tensor:
    """Returns [I 3 size size] from [3 rows*size columns*size], row by row."""
    blocks = pixels.view(3, grid.rows, tile_size, grid.columns, tile_size)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, 3, tile_size, tile_size)
