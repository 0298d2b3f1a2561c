"""Checkpoints in small numbers, in the layouts of compressed-tensors, which vLLM and transformers read.

In: a checkpoint and what makes a parameter small. Out: a directory as published quantised Llama 4 checkpoints are:
every expert's matrices apart, `weight_packed` `weight_scale` `weight_shape` (int4, "pack-quantized") or `weight`
`weight_scale` (fp8 "float-quantized", int8 "int-quantized", activations to be made small by the reader, token by
token), and in config.json what is small and what not.
Embedding, norms, router, vision and projector stay as they are. Reading is the business of `source`.
Source: compressed-tensors `compressors/pack_quantized`, `compressors/naive_quantized`, `quantization/quant_config.py`;
the layout of RedHatAI's Scout quantized.w4a16 and of Meta's Maverick FP8.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.errors import ConfigError
from puna.kernels.formats import GROUP, Fp8, Int4, Int8, Small
from puna.weights import names, safetensors
from puna.weights.checkpoint import COMPANIONS, MAX_FILE_BYTES, copy_files, new_directory, write_json
from puna.weights.configs import to_hf, to_hf_companions
from puna.weights.names import Part
from puna.weights.safetensors import Entry
from puna.weights.source import HF_CONFIG, HF_INDEX, HF_SINGLE, Progress, Source, open_source
from puna.weights.stored import Staging, pieces, region

Shrink = Callable[[str, Tensor | Small], Small]
IsSmall = Callable[[str, tuple[int, ...]], bool]  # of a parameter's name and shape

_WEIGHTS: dict[type[Small], dict[str, Any]] = {
    Int4: {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
    Int8: {"num_bits": 8, "type": "int", "strategy": "channel"},
    Fp8: {"num_bits": 8, "type": "float", "strategy": "channel"},
}
_FORMATS: dict[type[Small], str] = {Int4: "pack-quantized", Int8: "int-quantized", Fp8: "float-quantized"}
_CODES: dict[type[Small], torch.dtype] = {Int4: torch.int32, Int8: torch.int8, Fp8: torch.float8_e4m3fn}
# Modules of transformers by the beginnings of their keys, as patterns for those that are not small.
_NEVER = ("re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*")
_MODULES = {
    ".attention.": "re:.*self_attn",
    ".moe.experts.": "re:.*feed_forward.experts.*",
    ".moe.shared.": "re:.*shared_expert.*",
    ".mlp.": "re:.*feed_forward.(gate|up|down)_proj",
    "head.": "re:.*lm_head",
}


class Item(NamedTuple):
    """One matrix or vector of the file: the key that it has as `.weight`, and which part of which parameter it is."""

    key: str
    part: Part


def save_compressed(
    src: Path, dst: Path, kind: type[Small], shrink: Shrink, is_small: IsSmall, progress: Progress | None = None
) -> None:
    """Writes the checkpoint `src`, in any layout, to the new directory `dst`, in small numbers of one kind.

    `is_small` says which parameters `shrink` makes small; it is given each once, in the order of the file, as
    `Source.read_stored` has it. Memory holds one parameter at a time. Raises as `checkpoint.load` and `save_hf` do.
    """
    source = open_source(src)
    small = frozenset(name for name, shape in source.shapes.items() if is_small(name, shape))
    if outside := sorted(name for name in small if not name.startswith(("layers.", "head."))):
        raise ConfigError(f"{outside[0]}: this layout keeps it as it is; leave its part out")
    groups = list(_files(source, kind, small))
    with new_directory(dst) as folder:
        copy_files([file for name in COMPANIONS if (file := src / name).is_file()], folder)
        parameters = _Parameters(source, shrink, small, progress)
        weight_map: dict[str, str] = {}
        for number, items in enumerate(groups, 1):
            name = HF_SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            entries = [_entries(source, kind, small, item) for item in items]
            writer = safetensors.Writer(folder / name, [entry for group in entries for entry in group])
            for item, group in zip(items, entries, strict=True):
                for entry, data in zip(group, parameters.data(item, group), strict=True):
                    writer.put(entry, data)
                    weight_map[entry.key] = name
            writer.close()
        if len(groups) > 1:
            total = sum(entry.n_bytes for items in groups for i in items for entry in _entries(source, kind, small, i))
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(folder / HF_INDEX, index)
        dtype = {"dtype": str(source.dtype).removeprefix("torch.")}
        quantization = {"quantization_config": quantization_config(kind, small)}
        write_json(folder / HF_CONFIG, to_hf(source.config) | dtype | quantization)
        for name, content in to_hf_companions(source.config).items():
            if not (folder / name).exists():
                write_json(folder / name, content)


def quantization_config(kind: type[Small], small: frozenset[str]) -> dict[str, Any]:
    """Returns what config.json says of a model whose parameters `small` are of one kind.

    Int4 leaves activations alone (W4A16); the others let the reader round them too, token by token (W8A8), because
    vLLM has kernels for experts of eight bits in no other way.
    """
    ignored = [module for part, module in _MODULES.items() if not any(part in f".{name}" for name in small)]
    weights = _WEIGHTS[kind] | {"symmetric": True, "dynamic": False, "actorder": None, "observer": "minmax"}
    activations = {
        "num_bits": 8,
        "type": _WEIGHTS[kind]["type"],
        "strategy": "token",
        "symmetric": True,
        "dynamic": True,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[kind],
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None if kind is Int4 else activations,
                "output_activations": None,
            }
        },
        "ignore": [*ignored, *_NEVER],
        "kv_cache_scheme": None,
    }


class _Parameters:
    """The parameters of a source, small where they shall be, each read when its first item is asked for."""

    def __init__(self, source: Source, shrink: Shrink, small: frozenset[str], progress: Progress | None) -> None:
        self._source, self._shrink, self._small, self._progress = source, shrink, small, progress
        self._staging = Staging()
        self._last: tuple[str, Tensor | Small] | None = None
        self._n_done = 0

    def data(self, item: Item, entries: list[Entry]) -> Iterator[Iterator[memoryview]]:
        """Yields the bytes of each entry of one item."""
        value = self._parameter(item.part.name)
        if isinstance(value, Tensor):
            yield pieces(region(value, item.part, 0, 1), self._staging, in_first=False)
            return
        codes, scales = (region(tensor, item.part, 0, 1).contiguous() for tensor in value)
        yield iter([_bytes(codes)])
        yield iter([_bytes(scales.to(entries[1].dtype))])
        if isinstance(value, Int4):
            yield iter([_bytes(torch.tensor([codes.shape[0], 2 * codes.shape[1]]))])

    def _parameter(self, name: str) -> Tensor | Small:
        if self._last is None or self._last[0] != name:
            self._last = None  # freed before the next is read
            if name in self._small:
                self._last = (name, self._shrink(name, self._source.read_stored(name, self._staging)))
            else:
                self._last = (name, self._source.read(name, self._staging))
            self._n_done += self._source.n_bytes_of(name)
            if self._progress is not None:
                self._progress(self._n_done, self._source.n_bytes)
        return self._last[1]


def _files(source: Source, kind: type[Small], small: frozenset[str]) -> Iterator[list[Item]]:
    """Yields the items of each file: at most MAX_FILE_BYTES, all of one parameter in one, so that each is read once."""
    file: list[Item] = []
    n_bytes = 0
    for _, group in groupby(_items(source, small), key=lambda item: item.part.name):
        items = list(group)
        size = sum(entry.n_bytes for item in items for entry in _entries(source, kind, small, item))
        if file and n_bytes + size > MAX_FILE_BYTES:
            yield file
            file, n_bytes = [], 0
        file += items
        n_bytes += size
    yield file


def _items(source: Source, small: frozenset[str]) -> Iterator[Item]:
    for row in names.rows(source.config):
        if row.unfused and row.ours in small:
            experts = range(source.config.text.n_experts)
            yield from (Item(row.unfused.format(e=e), Part(row.ours, None, row.half, e)) for e in experts)
        elif row.half != 1:
            yield Item(row.hf, Part(row.ours, None))


def _entries(source: Source, kind: type[Small], small: frozenset[str], item: Item) -> list[Entry]:
    """The tensors that one item becomes in the file."""
    with torch.device("meta"):
        shape = tuple(region(torch.empty(source.shapes[item.part.name]), item.part, 0, 1).shape)
    key = names.written_hf(item.key, nested=source.config.vision is not None)
    if item.part.name not in small:
        return [Entry(key, source.dtype, shape)]
    n_out, n_in = shape
    scale = torch.bfloat16 if source.dtype == torch.float16 else source.dtype  # a scale may be below float16's range
    if kind is not Int4:
        return [Entry(key, _CODES[kind], shape), Entry(f"{key}_scale", scale, (n_out, 1))]
    return [
        Entry(f"{key}_packed", torch.int32, (n_out, n_in // 8)),
        Entry(f"{key}_scale", scale, (n_out, n_in // GROUP)),
        Entry(f"{key}_shape", torch.int64, (2,)),
    ]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy().data)
