"""An opened checkpoint: every parameter of the model found, checked and readable one at a time; no number read before.

In: a directory in Hugging Face's or Meta's layout. Out: `Source`. All that can be wrong with keys, shapes, dtypes and
lengths is found here from descriptions alone, before memory is spent, and reported as one error with file and key.
Not here: the model that receives the parameters, and writing (`checkpoint`).
Source: transformers `modeling_utils.py` (file names), llama-models `checkpoint.py` and `vision/encoder.py`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.kernels.formats import GROUP, Fp8, Int4, Int8, Small, dequantize
from puna.model.transformer import Llama
from puna.weights import names, pth, safetensors
from puna.weights.configs import from_hf, from_meta
from puna.weights.names import Layout, Part
from puna.weights.stored import Staging, Stored, fill, read, read_whole, region, room, shape_at_rest

HF_CONFIG, HF_INDEX, HF_SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
HF_PREPROCESSOR, HF_PROCESSOR = "preprocessor_config.json", "processor_config.json"
META_CONFIG = "params.json"
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FP8 = torch.float8_e4m3fn
SMALL = (FP8, torch.int8, torch.uint8)
"""What codes are stored in. uint8: bytes of compressed-tensors' packed words, with two nibbles or a number plus 128."""

Progress = Callable[[int, int], None]  # bytes read so far, bytes in all


class Piece(NamedTuple):
    """One part of one parameter: where each shard keeps it (`start`: elements before it in that tensor, `n_elements` of
    it, as they are stored) and the scales to multiply it with, None where it is not quantised."""

    part: Part
    layout: Layout
    start: int
    n_elements: int
    stored: tuple[Stored, ...]
    scales: tuple[Stored | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`pieces` has every parameter, in the order in which the files hold them. `dtype` is what the file has, or what
    was asked for."""

    config: LlamaConfig
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    pieces: Mapping[str, tuple[Piece, ...]]

    @property
    def n_bytes(self) -> int:
        """Bytes of the files that reading everything takes."""
        return sum(self.n_bytes_of(name) for name in self.pieces)

    def n_bytes_of(self, name: str) -> int:
        """Bytes of the files that one parameter takes."""
        return sum(p.n_elements * entry.dtype.itemsize for p in self.pieces[name] for entry in p.stored)

    @property
    def formats(self) -> dict[str, str]:
        """The formats of the parameters that are stored in small numbers: "int4", "int8" or "fp8" by name."""
        kinds = {name: self.kind_of(name) for name in self.pieces}
        return {name: kind.__name__.lower() for name, kind in kinds.items() if kind is not None}

    def files(self, names: Iterable[str]) -> set[Path]:
        """Returns the files that hold these parameters, their scales included."""
        pieces = (piece for name in names for piece in self.pieces[name])
        return {entry.path for piece in pieces for entry in (*piece.stored, *piece.scales) if entry is not None}

    def read(self, name: str, staging: Staging, device: torch.device | str = "cpu") -> Tensor:
        """Returns one parameter in our orientation, of `self.dtype`, new memory on `device`."""
        tensor = room(self.shapes[name], self.dtype, device)
        for piece in self.pieces[name]:
            for shard, (stored, scale) in enumerate(zip(piece.stored, piece.scales, strict=True)):
                target = region(tensor, piece.part, shard, len(piece.stored))
                if stored.dtype == torch.uint8:
                    assert scale is not None, "packed weights were matched with their scales"
                    target.copy_(dequantize(_unpacked(stored, scale, target.shape[-1], staging), self.dtype))
                    continue
                factor = None if scale is None else read_whole(scale).float().view(_scale_shape(target.shape, scale))
                fill(target, stored, piece.start, factor, staging, in_first=piece.layout.in_first)
            if piece.layout.key == names.META_RAW_POSITIONS:
                tensor.copy_(resample_positions(tensor))
        return tensor

    def kind_of(self, name: str) -> type[Small] | None:
        """Returns the format of small numbers in which `read_stored` gives a parameter; None for a plain tensor."""
        kinds = {_kind(piece, self.shapes[name][-1]) for piece in self.pieces[name]}
        return kinds.pop() if len(kinds) == 1 else None

    def read_stored(self, name: str, staging: Staging, device: torch.device | str = "cpu") -> Tensor | Small:
        """Returns one parameter in small numbers if it is stored in them, its numbers unchanged, otherwise as `read`.

        A scale for a whole tensor, or for more columns than 32, is repeated; Int4's become bfloat16, as they are in
        published files. What no format of ours can hold comes as `read` has it: several scales along the columns of
        eight bits (Meta's fp8 cut into shards), groups of fewer than 32 columns.
        """
        kind = self.kind_of(name)
        if kind is None:
            return self.read(name, staging, device)
        *leading, width = self.shapes[name]
        small = _empty(kind, leading, width, device)
        for piece in self.pieces[name]:
            for shard, (stored, scale) in enumerate(zip(piece.stored, piece.scales, strict=True)):
                assert scale is not None, "small numbers were matched with their scales"
                codes, scales = (region(part, piece.part, shard, len(piece.stored)) for part in small)
                if stored.dtype == torch.uint8:
                    unpacked = _unpacked(stored, scale, width, staging)
                    codes.copy_(unpacked.codes)
                    scales.copy_(unpacked.scales)
                    continue
                fill(codes, stored, piece.start, None, staging, in_first=piece.layout.in_first)
                scales.copy_(read_whole(scale).float().view(_scale_shape(codes.shape, scale)))
        return small

    def of_expert(self, name: str, expert: int) -> "Source":
        """Returns the source of one expert [out in] of a parameter [E out in], under the same name, as if the files
        held nothing else: who reads it reads its bytes only."""
        n_experts, *shape = self.shapes[name]
        pieces = (_piece_of_expert(piece, n_experts, expert) for piece in self.pieces[name])
        mine = tuple(piece for piece in pieces if piece is not None)
        return replace(self, shapes={name: tuple(shape)}, pieces={name: mine})


class _Files(NamedTuple):
    """What a directory holds, before it is compared with a configuration: per shard, tensors by canonical key."""

    where: Path  # to blame for a missing key
    shards: tuple[dict[str, Stored], ...]


class _Format(NamedTuple):
    """What reading needs to know of a format. `primary` are the layouts as published, `others` the other spellings."""

    primary: list[Layout]
    others: list[Layout]
    canonical: Callable[[str], str | None]
    scale_keys: Callable[[str], Iterable[str]]


def is_meta(path: Path) -> bool:
    """Returns whether a directory is in Meta's layout. Where both descriptions lie, Hugging Face's counts: such a
    directory was made for transformers, and Meta's files in it are often there for the tokenizer alone."""
    if (path / HF_CONFIG).is_file():
        return False
    if (path / META_CONFIG).is_file():
        return True
    raise WeightsError(
        f"{path}: neither {HF_CONFIG} nor {META_CONFIG} in this directory; give the one with the weights"
    )


def open_config(path: Path) -> LlamaConfig:
    """Returns the configuration of a checkpoint directory. Its weights may be absent; where they are there, the width
    of the dense layers is measured, because published configurations of the dense Llama Guard 4 do not tell it right.

    Raises WeightsError or ConfigError, naming the file.
    """
    if is_meta(path):
        files = _meta_files(path) if any(path.glob("consolidated*.pth")) else None
        return _meta_config(path, files)
    files = _hf_files(path) if any(path.glob("*.safetensors")) or (path / HF_INDEX).is_file() else None
    return _hf_config(path, files)


def open_source(path: Path, dtype: torch.dtype | None = None) -> Source:
    """Opens a checkpoint directory. dtype None keeps the files' own, which must then be one.

    Raises WeightsError for the first thing that is wrong with the files, ConfigError for their configuration.
    """
    if dtype not in (None, *FLOATS):
        raise WeightsError(f"dtype: {dtype} cannot hold weights; use one of {', '.join(map(str, FLOATS))}")
    if is_meta(path):
        files = _meta_files(path)
        config = _meta_config(path, files)
        scale_keys = names.scale_keys_meta(config)
        form = _Format(
            names.meta_layouts(config),
            names.meta_module_layouts(config),
            names.canonical_meta,
            lambda key: (f"{scale_keys[key]}_scale",) if key in scale_keys else (),
        )
    else:
        files = _hf_files(path)
        config = _hf_config(path, files)
        form = _Format(
            names.hf_layouts(config), names.hf_unfused_layouts(config), names.canonical_hf, names.scale_keys_hf
        )
    with torch.device("meta"):
        parameters: dict[str, Tensor] = dict(Llama(config).named_parameters())
    pieces = _match(parameters, files, form)
    return Source(
        config=config,
        dtype=dtype or _common_dtype(pieces),
        shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        pieces=pieces,
    )


def resample_positions(raw: Tensor) -> Tensor:
    """Returns Meta's position table as its vision encoder uses it, from the table as it was trained. float32 [P+1 W].

    raw [P+1 W], class row first; in the result it is last. Rows of patches are read from the grid bilinearly at the
    patches' upper left corners, half a patch from their centres, with zeros outside.
    Source: llama-models `models/llama4/vision/encoder.py`, load hook of VisionEncoder.
    """
    side = math.isqrt(raw.shape[0] - 1)
    steps = torch.arange(side, device=raw.device) / side * 2 - 1
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    grid = raw[1:].float().view(side, side, -1).permute(2, 0, 1)  # W rows columns
    corners = torch.stack([columns, rows], dim=-1)  # rows columns 2
    sampled = grid_sample(grid[None], corners[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    return torch.cat([sampled.flatten(1).T, raw[:1].float()])  # P+1 W


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object from a file. Raises WeightsError, naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: holds a {type(value).__name__}, not an object; fetch it again")
    return value


def _hf_files(path: Path) -> _Files:
    """Hugging Face's: one file, or several with an index. Where both lie, the one file counts, as in transformers."""
    index, single = path / HF_INDEX, path / HF_SINGLE
    if single.is_file():
        return _Files(single, (_by_key(safetensors.index(single), names.canonical_hf),))
    if not index.is_file():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise WeightsError(
                f"{path}: {len(found)} safetensors files and no {HF_INDEX}; fetch the index"
                if found
                else f"{path}: no {HF_SINGLE} and no {HF_INDEX} in this directory; give the one with the weights"
            )
        return _Files(found[0], (_by_key(safetensors.index(found[0]), names.canonical_hf),))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: has no weight_map; fetch it again")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{key!r} in {index}: {name!r} is not the name of a file beside the index")
        if not (path / name).is_file():
            raise WeightsError(f"{key!r} in {index}: its file {path / name} is missing; fetch it")
    stored = [entry for name in sorted(set(weight_map.values())) for entry in safetensors.index(path / name)]
    for entry in stored:
        if weight_map.get(entry.key) != entry.path.name:
            raise WeightsError(f"{entry}: the index {index} puts it in {weight_map.get(entry.key)!r}; fetch both again")
    for key in sorted(weight_map.keys() - {entry.key for entry in stored}):
        raise WeightsError(f"{key!r} in {index}: is missing in its file {path / weight_map[key]}; fetch it again")
    return _Files(index, (_by_key(stored, names.canonical_hf),))


def _meta_files(path: Path) -> _Files:
    """Meta's: consolidated.00.pth and so on, one per model-parallel shard, or a single consolidated.pth. Beside them
    fp8_scales_N.pt when routed experts are fp8."""
    if any(path.glob("int4_scales_*.pt")):
        raise WeightsError(f"{path}: int4_scales_*.pt: packed int4 of Meta's format is not supported; use bf16 or fp8")
    numbered = sorted(path.glob("consolidated.[0-9]*.pth"))
    paths = numbered or [path / "consolidated.pth"]
    if not paths[0].is_file():
        raise WeightsError(
            f"{path}: no consolidated.00.pth and no consolidated.pth in this directory; fetch the weights"
        )
    shards = []
    for number, file in enumerate(paths):
        if numbered and file.name != f"consolidated.{number:02d}.pth":
            raise WeightsError(f"{path / f'consolidated.{number:02d}.pth'}: is missing, {file.name} is there; fetch it")
        tensors = _by_key(pth.index(file), names.canonical_meta)
        scales = path / f"fp8_scales_{number}.pt"
        if scales.is_file():
            tensors |= {f"{entry.key}_scale": entry for entry in pth.index(scales)}
        shards.append(tensors)
    return _Files(paths[0] if len(paths) == 1 else path, tuple(shards))


def _by_key(stored: Sequence[Stored], canonical: Callable[[str], str | None]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for entry in stored:
        key = canonical(entry.key)
        if key is None:
            continue
        if key.endswith(names.PACKED) and entry.dtype == torch.int32 and entry.shape:
            key = key.removesuffix("_packed")
            entry = entry._replace(dtype=torch.uint8, shape=(*entry.shape[:-1], 4 * entry.shape[-1]))
        if key in tensors:
            raise WeightsError(f"{entry}: is there twice, also as {tensors[key]}; remove one")
        tensors[key] = entry
    return tensors


def _hf_config(path: Path, files: _Files | None) -> LlamaConfig:
    try:
        config = from_hf(read_json(path / HF_CONFIG), _preprocessor(path))
    except ConfigError as error:
        raise ConfigError(f"{path / HF_CONFIG}: {error}") from error
    return _with_dense_width(config, files, names.hf_layouts(config), names.canonical_hf)


def _preprocessor(path: Path) -> dict[str, Any] | None:
    """How pictures are prepared: a file of its own or, as transformers 5 writes it, a part of the processor's."""
    if (path / HF_PREPROCESSOR).is_file():
        return read_json(path / HF_PREPROCESSOR)
    part = read_json(path / HF_PROCESSOR).get("image_processor") if (path / HF_PROCESSOR).is_file() else None
    return part if isinstance(part, dict) else None


def _meta_config(path: Path, files: _Files | None) -> LlamaConfig:
    """Meta's `vocab_size` may be absent or -1 ("as many as the tokenizer has"): then the embedding tells it."""
    params = read_json(path / META_CONFIG)
    embedding = [shard.get("tok_embeddings.weight") for shard in files.shards] if files else []
    if params.get("vocab_size", -1) == -1 and embedding:
        params["vocab_size"] = sum(entry.shape[0] for entry in embedding if entry is not None and entry.shape)
    try:
        config = from_meta(params)
    except ConfigError as error:
        raise ConfigError(f"{path / META_CONFIG}: {error}") from error
    layouts = names.meta_layouts(config) + names.meta_module_layouts(config)
    return _with_dense_width(config, files, layouts, names.canonical_meta)


def _with_dense_width(
    config: LlamaConfig, files: _Files | None, layouts: Iterable[Layout], canonical: Callable[[str], str | None]
) -> LlamaConfig:
    """The configuration with the width that the first dense layer's tensors have, if there is one."""
    dense = sorted(set(range(config.text.n_layers)) - config.text.moe_layers)
    if not dense or files is None:
        return config
    gate = f"layers.{dense[0]}.mlp.gate.weight"
    for layout in layouts:
        stored = files.shards[0].get(canonical(layout.key) or "")
        if stored is not None and stored.shape and layout.parts[0].name == gate:
            width = stored.shape[0] // len(layout.parts) * len(files.shards)
            return replace(config, text=replace(config.text, dense_width=width)) if width else config
    return config


def _match(parameters: Mapping[str, Tensor], files: _Files, form: _Format) -> dict[str, tuple[Piece, ...]]:
    """Finds the pieces of every parameter; what is left over, missing, doubled or misshaped raises."""
    layouts = {form.canonical(layout.key): layout for layout in (*form.others, *form.primary)}
    if names.META_RAW_POSITIONS in files.shards[0] and "vision.positions" in parameters:
        raw = Layout(names.META_RAW_POSITIONS, (Part("vision.positions", None),), in_first=False, merged=False)
        layouts = {key: layout for key, layout in layouts.items() if layout.parts != raw.parts} | {raw.key: raw}
        for shard in files.shards:
            shard.pop(f"{raw.key}_vlm", None)  # Meta's load hook replaces it with what it makes of the raw table
    pieces: dict[str, list[Piece]] = {name: [] for name in parameters}
    used = set()
    for key in files.shards[0]:
        layout = layouts.get(key)
        if layout is not None:
            stored = tuple(_in_shard(shard, key, files) for shard in files.shards)
            scales = tuple(
                _scale_of(entry, key, shard, form) for entry, shard in zip(stored, files.shards, strict=True)
            )
            used |= {key} | {scale_key for scale_key in form.scale_keys(layout.key) if scales[0] is not None}
            for piece in _pieces(layout, stored, scales, parameters):
                pieces[piece.part.name].append(piece)
    for shard in files.shards:
        for key, entry in shard.items():
            if key not in used:
                if key.endswith(("zero_point", "g_idx")):
                    raise WeightsError(
                        f"{entry}: codes around a zero point or in another order are not supported; use a symmetric one"
                    )
                raise WeightsError(
                    f"{entry}: unexpected; of another model than the configuration, or of a quantisation not supported"
                )
    for name, parameter in parameters.items():
        _check_complete(name, parameter, pieces[name], files, form)
    return dict(sorted(((name, tuple(p)) for name, p in pieces.items()), key=lambda item: _place(item[1][0])))


def _in_shard(shard: Mapping[str, Stored], key: str, files: _Files) -> Stored:
    if key in shard:
        return shard[key]
    example = files.shards[0][key]
    raise WeightsError(
        f"{example.key!r} in {next(iter(shard.values())).path if shard else files.where}: missing; "
        f"{example.path.name} has it; fetch the file again"
    )


def _scale_of(entry: Stored, key: str, shard: Mapping[str, Stored], form: _Format) -> Stored | None:
    if entry.dtype not in SMALL:
        return None
    for scale_key in form.scale_keys(key):
        if scale_key in shard:
            return shard[scale_key]
    if entry.dtype != FP8:
        return None  # then it cannot be a weight
    raise WeightsError(
        f"{entry}: is fp8 and has no scale, which should be called {entry.key}_scale; fetch the file again"
    )


def _pieces(
    layout: Layout, stored: tuple[Stored, ...], scales: tuple[Stored | None, ...], parameters: Mapping[str, Tensor]
) -> Iterable[Piece]:
    """The pieces that one tensor of the files holds, its shape checked in every shard."""
    if len(layout.parts) > 1 and scales[0] is not None:
        raise WeightsError(
            f"{stored[0]}: is fp8 and holds {len(layout.parts)} matrices; only routed experts may be fp8 here"
        )
    n_shards = len(stored)
    for part in layout.parts:
        size = region(parameters[part.name], part, 0, 1).shape[part.axis] if part.axis is not None else n_shards
        if size % n_shards:
            raise WeightsError(
                f"{stored[0]}: {size} cannot be cut into {n_shards} shards; the files are not one checkpoint"
            )
    regions = [region(parameters[part.name], part, 0, n_shards) for part in layout.parts]
    expected = shape_at_rest(regions, layout)
    *rows, width = expected
    for entry in stored:
        # Meta's own resharding leaves merged experts unmerged.
        allowed = {expected, shape_at_rest(regions, layout._replace(merged=False))}
        if entry.dtype == torch.uint8 and not layout.in_first:
            allowed = {(*rows, width), (*rows, width // 2)} if width % 2 == 0 else {(*rows, width)}
        if entry.shape not in allowed:
            raise WeightsError(
                f"{entry}: shape {list(entry.shape)}, but the configuration asks for {list(expected)}"
                + (f" in each of {n_shards} shards" if n_shards > 1 else "")
            )
    for entry, scale in zip(stored, scales, strict=True):
        if entry.dtype not in (*FLOATS, *SMALL) or (entry.dtype in SMALL and scale is None):
            raise WeightsError(
                f"{entry}: {entry.dtype} cannot be a weight; use a float checkpoint or one in fp8 with scales"
            )
        if scale is not None and entry.dtype == torch.uint8:
            _group(scale, width, rows)
        elif scale is not None:
            _scale_shape(regions[0].shape, scale)
    start = 0
    for part, view in zip(layout.parts, regions, strict=True):
        n_copies = n_shards if part.axis is not None else 1  # what every shard has in full is read from the first
        share = view.numel() * math.prod(stored[0].shape) // sum(each.numel() for each in regions)
        yield Piece(part, layout, start, share, stored[:n_copies], scales[:n_copies])
        start += share


def _check_complete(name: str, parameter: Tensor, pieces: Sequence[Piece], files: _Files, form: _Format) -> None:
    n_found = sum(region(parameter, piece.part, 0, 1).numel() for piece in pieces)
    if n_found > parameter.numel():
        keys = sorted({str(piece.stored[0]) for piece in pieces})
        raise WeightsError(f"{keys[0]}: is there twice, also as {keys[-1]}; remove one")
    if n_found < parameter.numel():
        found = {piece.layout.key for piece in pieces}
        spelling = form.others if any(layout.key in found for layout in form.others) else form.primary
        holders = [layout.key for layout in spelling if any(part.name == name for part in layout.parts)]
        key = next(key for key in holders if key not in found)
        raise WeightsError(
            f"{_as_written(key, files)!r} in {files.where}: missing; the checkpoint is incomplete, fetch it again"
        )


def _as_written(key: str, files: _Files) -> str:
    """A canonical key in the spelling of the files at hand."""
    nested = any(entry.key.startswith("language_model.") for entry in files.shards[0].values())
    return names.written_hf(key, nested=nested)


def _common_dtype(pieces: Mapping[str, Sequence[Piece]]) -> torch.dtype:
    """The one dtype of what is not in small numbers. Mixed files are an error: a silent choice would hide a mistake."""
    every = [entry for group in pieces.values() for piece in group for entry in piece.stored]
    stored = [entry for entry in every if entry.dtype not in SMALL]
    counts: dict[torch.dtype, int] = {}
    for entry in stored:
        counts[entry.dtype] = counts.get(entry.dtype, 0) + 1
    if not counts:
        raise WeightsError(
            "dtype: all weights are in small numbers, so the files do not tell what to compute in; give one"
        )
    usual = max(counts, key=lambda dtype: counts[dtype])
    for entry in stored:
        if entry.dtype != usual:
            raise WeightsError(f"{entry}: {entry.dtype}, while most weights are {usual}; give a dtype to convert to")
    return usual


def _scale_shape(shape: Sequence[int], scale: Stored) -> list[int]:
    """The shape [.. out 1] or [.. 1 1] of a scale for weights [.. out in]: one per tensor, expert, or output row.

    Which axes of size 1 a writer leaves differs; the order of the numbers does not. Raises WeightsError for others.
    """
    experts, rows = list(shape[:-2]), list(shape[:-1])
    for wanted in ([1] * len(shape), [*rows, 1], [*experts, 1, 1]):
        if scale.dtype in FLOATS and [n for n in scale.shape if n != 1] == [n for n in wanted if n != 1]:
            return wanted
    raise WeightsError(
        f"{scale}: {scale.dtype} of shape {list(scale.shape)} is neither one scale nor one per row of {list(shape)}; "
        "block-wise scales are not supported"
    )


def _kind(piece: Piece, width: int) -> type[Small] | None:
    """The format that can hold a piece as it is stored, of a parameter with `width` columns; None for none."""
    entry, scale = piece.stored[0], piece.scales[0]
    if scale is None or (len(piece.stored) > 1 and piece.part.axis == names.IN):
        return None
    if entry.dtype != torch.uint8:
        return Fp8 if entry.dtype == FP8 else Int8
    group = _group(scale, width, entry.shape[:-1])
    if entry.shape[-1] == width:
        return Int8 if group == width else None
    return Int4 if group % GROUP == 0 else None


def _empty(kind: type[Small], leading: Sequence[int], width: int, device: torch.device | str) -> Small:
    """Memory for a weight [.. out in] in a format."""
    if kind is Int4:
        codes = torch.empty(*leading, width // 2, dtype=torch.uint8, device=device)
        return Int4(codes, torch.empty(*leading, width // GROUP, dtype=torch.bfloat16, device=device))
    dtype = FP8 if kind is Fp8 else torch.int8
    return kind(
        torch.empty(*leading, width, dtype=dtype, device=device),
        torch.empty(*leading, 1, dtype=torch.float32, device=device),
    )


def _unpacked(stored: Stored, scale: Stored, width: int, staging: Staging) -> Small:
    """One matrix of packed words [out in], in memory of its own.

    Int4 where it has two nibbles a byte, with scales repeated for each 32 columns; otherwise Int8 of a number plus 128.
    Raises WeightsError where the groups are smaller or, of eight bits, not whole rows.
    """
    group = _group(scale, width, stored.shape[:-1])
    codes, scales = read(stored, 0, stored.shape, staging).clone(), read_whole(scale).float().view(stored.shape[0], -1)
    if stored.shape[-1] == width and group == width:
        return Int8((codes ^ 128).view(torch.int8), scales)
    if stored.shape[-1] == width or group % GROUP:
        raise WeightsError(f"{scale}: one scale for {group} columns is not supported; use whole rows, or 32 and more")
    return Int4(codes, scales.bfloat16().repeat_interleave(group // GROUP, dim=-1))


def _group(scale: Stored, width: int, rows: Sequence[int]) -> int:
    """How many columns share a scale. Raises WeightsError where the scales are no whole number for each row."""
    n = math.prod(scale.shape)
    per_row, left = divmod(n, math.prod(rows))
    if scale.dtype not in FLOATS or left or not per_row or width % per_row:
        raise WeightsError(f"{scale}: {scale.dtype} of shape {list(scale.shape)} does not fit rows of {width} columns")
    return width // per_row


def _piece_of_expert(piece: Piece, n_experts: int, expert: int) -> Piece | None:
    """What belongs to one expert of a piece; None for nothing."""
    if piece.part.expert is not None:
        return piece._replace(part=piece.part._replace(expert=None)) if piece.part.expert == expert else None
    n = piece.n_elements // n_experts  # the matrices of a stack follow one another in the file, and so do their scales
    scales = tuple(None if scale is None else _scale_of_expert(scale, n_experts, expert) for scale in piece.scales)
    return piece._replace(start=piece.start + expert * n, n_elements=n, scales=scales)


def _scale_of_expert(scale: Stored, n_experts: int, expert: int) -> Stored:
    n = math.prod(scale.shape)
    if n == 1:  # one for all
        return scale
    mine = n // n_experts
    return scale._replace(shape=(mine,), offset=scale.offset + expert * mine * scale.dtype.itemsize)


def _place(piece: Piece) -> tuple[str, int]:
    return str(piece.stored[0].path), piece.stored[0].offset + piece.start * piece.stored[0].dtype.itemsize
