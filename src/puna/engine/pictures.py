"""Pictures in prompts: which tile a patch id belongs to, and features of tiles that are worked out once.

In: a request's ids and tiles. Out: digests that name the content of tiles, and image features for a stretch of a
prompt. Tiles of several requests go through the vision tower together; equal tiles only once, as long as their
features are remembered.
Not here: what a tile shows and how it was cut (`prompt/tiles`).
"""

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puna.engine.request import Request
from puna.model.transformer import Llama

TILES_AT_ONCE = 17
"""Tiles that the vision tower reads in one go: one picture of the largest kind, so that its memory is bounded."""

MAX_FEATURE_BYTES = 256 * 2**20
"""Features that are remembered: of 180 tiles of Scout in bfloat16."""

DIGEST_BYTES = 16


class Pictures(NamedTuple):
    """A prompt's tiles [I 3 S S] with their digests, and the positions of its patch ids, ascending."""

    tiles: Tensor
    digests: tuple[bytes, ...]
    patch_positions: tuple[int, ...]
    tokens_per_tile: int

    @classmethod
    def of(cls, request: Request, patch_id: int | None, tokens_per_tile: int) -> "Pictures | None":
        """Returns the pictures of a request that was checked, or None if it has none."""
        if request.tiles is None or patch_id is None or not len(request.tiles):
            return None
        positions = tuple(i for i, id_ in enumerate(request.ids) if id_ == patch_id)
        return cls(request.tiles, tuple(digest(tile) for tile in request.tiles), positions, tokens_per_tile)

    def patches(self, start: int, end: int) -> range:
        """Returns which patches of the prompt lie at the positions from `start` to `end`."""
        return range(bisect_left(self.patch_positions, start), bisect_left(self.patch_positions, end))

    def tile_indices(self, start: int, end: int) -> range:
        """Returns the tiles that these patches belong to."""
        patches, n = self.patches(start, end), self.tokens_per_tile
        return range(patches.start // n, -(-patches.stop // n)) if patches else range(0)

    def digests_between(self, start: int, end: int) -> tuple[bytes, ...]:
        """Returns the digests of those tiles, in order."""
        return tuple(self.digests[i] for i in self.tile_indices(start, end))


def digest(tile: Tensor) -> bytes:
    """Returns a name for the content of a tile [3 S S]: other numbers or another format, another name."""
    content = tile.detach().cpu().contiguous()
    key = hashlib.blake2b(f"{tile.dtype} {tuple(tile.shape)}".encode(), digest_size=DIGEST_BYTES)
    key.update(content.view(torch.uint8).numpy().tobytes())
    return key.digest()


class Features:
    """Features of tiles by digest, [tokens_per_tile D] each, at most `max_bytes`; the coldest go first."""

    def __init__(self, model: Llama, max_bytes: int = MAX_FEATURE_BYTES) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()
        self.n_bytes = 0

    def gather(self, stretches: Sequence[tuple[Pictures, int, int]]) -> Tensor | None:
        """Returns the features [M D] of all patches in stretches (pictures, start, end) of prompts, in order, or None.

        Tiles that are not known yet go through the tower together, and with them the next ones of the same prompts.
        """
        needed = [pictures.tile_indices(start, end) for pictures, start, end in stretches]
        wanted: dict[bytes, Tensor] = {}
        for (pictures, _, _), tiles in zip(stretches, needed, strict=True):
            if any(pictures.digests[i] not in self._known for i in tiles):
                ahead = slice(tiles.start, max(tiles.stop, tiles.start + TILES_AT_ONCE))
                wanted |= zip(pictures.digests[ahead], pictures.tiles[ahead], strict=True)
        missing = [key for key in wanted if key not in self._known]
        if missing:
            fresh = embed_tiles(self._model, torch.stack([wanted[key] for key in missing]))  # M D
            for key, features in zip(missing, fresh.chunk(len(missing)), strict=True):
                self._known[key] = features.clone()
        parts = [part for each in stretches for part in self._rows(*each)]
        self._trim()
        return torch.cat(parts) if parts else None

    def forget(self) -> None:
        """Forgets everything, as when the weights have changed."""
        self._known.clear()
        self.n_bytes = 0

    def _rows(self, pictures: Pictures, start: int, end: int) -> Iterator[Tensor]:
        patches, n = pictures.patches(start, end), pictures.tokens_per_tile
        for i in pictures.tile_indices(start, end):
            self._known.move_to_end(pictures.digests[i])
            yield self._known[pictures.digests[i]][max(patches.start - i * n, 0) : patches.stop - i * n]

    def _trim(self) -> None:
        self.n_bytes = sum(features.numel() * features.element_size() for features in self._known.values())
        while self.n_bytes > self._max_bytes:
            _, gone = self._known.popitem(last=False)
            self.n_bytes -= gone.numel() * gone.element_size()


def embed_tiles(model: Llama, tiles: Tensor) -> Tensor:
    """Returns one feature per patch id, [I 3 S S] -> [M D], on the model's device, TILES_AT_ONCE tiles at a time."""
    device = model.embedding.weight.device
    return torch.cat([model.embed_tiles(part.to(device)) for part in torch.split(tiles, TILES_AT_ONCE)])
