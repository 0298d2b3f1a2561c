"""Checkpoints in and out: load a directory into a model, save a model as a directory, convert one into another.

In: a directory in Hugging Face's or Meta's layout, of any published form. Out: a `Llama` with all its parameters, or
a directory in either layout that transformers or Meta's own code reads unchanged.
Loading needs the memory of the model and of one matrix; converting that of a few parameters. Nothing in a file is ever
executed. Saving writes beside the destination and renames: a directory of that name is complete or not there.
Not here: names (`names`), formats (`safetensors`, `pth`), what is wrong with a checkpoint (`source`).
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.kernels.formats import Small, stack
from puna.model.transformer import Llama, set_parameter
from puna.weights import names, pth, safetensors
from puna.weights.configs import to_hf, to_hf_companions, to_meta
from puna.weights.names import Layout
from puna.weights.safetensors import Entry
from puna.weights.source import (
    FLOATS,
    HF_CONFIG,
    HF_INDEX,
    HF_PREPROCESSOR,
    HF_PROCESSOR,
    HF_SINGLE,
    META_CONFIG,
    Progress,
    Source,
    open_config,
    open_source,
)
from puna.weights.stored import Staging, pieces, region, shape_at_rest

__all__ = ["convert", "derive", "load", "open_config", "save_hf", "save_meta"]

Place = Callable[[Llama, str, Tensor | Small], None]


class Share(Protocol):
    """What one of several ranks keeps of a model: `parallel.Share`."""

    @property
    def experts(self) -> range:
        """The experts of each layer of which it keeps a part."""
        ...

    def own_name(self, name: str) -> str | None:
        """Returns what a parameter of the model is called in the share; None for one that it does not keep."""
        ...

    def part(self, name: str, weight: Tensor | Small) -> Tensor | Small:
        """Returns what it keeps of a parameter, or of one expert's matrix of it."""
        ...


MAX_FILE_BYTES = 5_000_000_000  # as Hugging Face cuts them; a larger single tensor gets a file of its own
# What belongs to a model besides configuration and weights, and means the same in both layouts.
COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    HF_PROCESSOR,
    HF_PREPROCESSOR,
)


def load(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    model: Llama | None = None,
    share: Share | None = None,
    leave_out: Callable[[str], bool] | None = None,
    progress: Progress | None = None,
) -> Llama:
    """Returns the model of a checkpoint directory, its parameters on `device`.

    dtype None keeps the files' own; weights in small numbers are multiplied with their scales into it. `place`, given
    the model, a parameter's name and its value, puts it into the model in whatever form, before the next one is read:
    memory never holds more than one parameter in two forms. To it, small numbers come as they are stored wherever a
    format of `kernels.formats` can hold them. Parameters that `leave_out` names are not read and stay on the meta
    device. `model` is filled instead of a new one; with `share`, which needs `place`, it gets a rank's parts under the
    names that they have there. `progress` is told the bytes read so far and in all, after each parameter.
    Raises ConfigError or WeightsError, naming file and key, before any memory is taken where descriptions show it.
    """
    source = open_source(path, dtype)
    if model is None:
        with torch.device("meta"):
            model = Llama(source.config)
    staging, n_done, n_bytes = Staging(), 0, source.n_bytes
    for name in source.pieces:
        if leave_out is not None and leave_out(name):
            continue
        own_name = name if share is None else share.own_name(name)
        if own_name is not None and place is not None:
            place(model, own_name, _part(source, name, share, staging, device))
        elif own_name is not None:
            set_parameter(model, own_name, source.read(name, staging, device))
        n_done += source.n_bytes_of(name)
        if progress is not None:
            progress(n_done, n_bytes)
    return model


def save_hf(
    state: nn.Module | Mapping[str, Tensor],
    config: LlamaConfig,
    path: Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a directory that transformers' `from_pretrained` reads: config.json, weights in files of at most
    `max_file_bytes`, an index where there are several, and the small files of `to_hf_companions`.

    state: the model, or its parameters by name, all of one float dtype, which is kept. `path` must not exist, or be
    an empty directory. Raises WeightsError for a parameter that is missing, unknown, misshaped or of another dtype.
    """
    tensors = _parameters(state)
    _save_hf(tensors, config, _checked_dtype(tensors, config), path, (), max_file_bytes)


def save_meta(state: nn.Module | Mapping[str, Tensor], config: LlamaConfig, path: Path, shards: int = 1) -> None:
    """Writes a directory in Meta's layout: params.json and one consolidated.NN.pth per model-parallel shard.

    As `save_hf`. Raises WeightsError when heads, widths or the vocabulary cannot be cut into that many shards.
    """
    tensors = _parameters(state)
    _save_meta(tensors, config, _checked_dtype(tensors, config), path, shards, ())


def convert(
    src: Path,
    dst: Path,
    to: str,
    shards: int = 1,
    progress: Progress | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Writes the checkpoint `src` to the new directory `dst` in the layout `to`, "hf" or "meta", tokenizer included.

    Every number is kept bit for bit, fp8 excepted: it is written in the dtype of the other weights. Only a few
    parameters are in memory at a time. `shards` counts Meta's files. `change`, given a parameter's name and value,
    returns what is written instead, of the same shape and dtype.
    Raises as `load` and the `save` functions; ConfigError for an unknown layout.
    """
    if to not in ("hf", "meta"):
        raise ConfigError(f"to: {to!r} is not a layout; use 'hf' or 'meta'")
    if to == "hf" and shards != 1:
        raise ConfigError(f"shards: {shards} has no meaning for 'hf', whose files are cut by size; leave it out")
    source = open_source(src)
    companions = [file for name in COMPANIONS if (file := src / name).is_file()]
    tensors = _OnDemand(source, progress, change)
    if to == "hf":
        _save_hf(tensors, source.config, source.dtype, dst, companions, MAX_FILE_BYTES)
    else:
        _save_meta(tensors, source.config, source.dtype, dst, shards, companions)


def derive(
    src: Path, dst: Path, config: LlamaConfig, origin: Callable[[str], str], progress: Progress | None = None
) -> None:
    """Writes to the new directory `dst` a checkpoint of `config` in Hugging Face's layout, tokenizer included, whose
    every parameter is the one of `src` that `origin` names for it.

    Numbers and memory as in `convert`. Raises as `load` and `save_hf`.
    """
    source = open_source(src)
    companions = [file for name in COMPANIONS if (file := src / name).is_file()]
    tensors = _Renamed(_OnDemand(source, progress), {name: origin(name) for name in _empty(config)})
    _save_hf(tensors, config, source.dtype, dst, companions, MAX_FILE_BYTES)


def _part(
    source: Source, name: str, share: Share | None, staging: Staging, device: torch.device | str
) -> Tensor | Small:
    """A parameter, or a share's part of it: experts come one at a time, so that never all of them are in memory."""
    if share is None:
        return source.read_stored(name, staging, device)
    if len(source.shapes[name]) < 3:
        return share.part(name, source.read_stored(name, staging, device))
    return stack(
        [share.part(name, source.of_expert(name, e).read_stored(name, staging, device)) for e in share.experts]
    )


class _OnDemand(Mapping[str, Tensor]):
    """The parameters of a source, each read when asked for. The last is kept: neighbours in a file often share it."""

    def __init__(
        self, source: Source, progress: Progress | None, change: Callable[[str, Tensor], Tensor] | None = None
    ) -> None:
        self._source, self._progress, self._change = source, progress, change
        self._staging = Staging()
        self._last: tuple[str, Tensor] | None = None
        self._n_done = 0

    def __getitem__(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None  # freed before the next is read
            value = self._source.read(name, self._staging)
            self._last = (name, value if self._change is None else self._change(name, value))
            self._n_done += self._source.n_bytes_of(name)
            if self._progress is not None:
                self._progress(self._n_done, self._source.n_bytes)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.pieces)

    def __len__(self) -> int:
        return len(self._source.pieces)


class _Renamed(Mapping[str, Tensor]):
    """Parameters under other names: `origins` says for each name what it is called in `tensors`."""

    def __init__(self, tensors: Mapping[str, Tensor], origins: Mapping[str, str]) -> None:
        self._tensors, self._origins = tensors, origins

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._origins[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def _parameters(state: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = dict(state.named_parameters()) if isinstance(state, nn.Module) else state
    return {name: tensor.detach() for name, tensor in values.items()}


def _empty(config: LlamaConfig) -> dict[str, Tensor]:
    """All parameters on the meta device: their shapes."""
    with torch.device("meta"):
        return {name: parameter.detach() for name, parameter in Llama(config).named_parameters()}


def _checked_dtype(tensors: Mapping[str, Tensor], config: LlamaConfig) -> torch.dtype:
    """The one dtype of all parameters, each of which is there with the shape that the configuration asks for."""
    expected = _empty(config)
    for name in sorted(tensors.keys() ^ expected.keys()):
        what = "missing in what is to be saved" if name in expected else "not a parameter of this configuration"
        raise WeightsError(f"{name}: {what}; save a model with its own configuration")
    dtype = tensors["embedding.weight"].dtype
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{name}: shape {list(tensor.shape)}, but the configuration asks for {list(expected[name].shape)}"
            )
        if tensor.dtype != dtype or dtype not in FLOATS:
            raise WeightsError(f"{name}: {tensor.dtype}; save all parameters in one float dtype, such as {FLOATS[0]}")
    return dtype


def _save_hf(
    tensors: Mapping[str, Tensor],
    config: LlamaConfig,
    dtype: torch.dtype,
    path: Path,
    companions: Sequence[Path],
    max_file_bytes: int,
) -> None:
    empty, staging = _empty(config), Staging()
    layouts = names.hf_layouts(config)
    groups: list[list[tuple[Layout, Entry]]] = [[]]
    for layout in layouts:
        key = names.written_hf(layout.key, nested=config.vision is not None)
        entry = Entry(key, dtype, _shape(empty, layout, 0, 1))
        if groups[-1] and sum(e.n_bytes for _, e in groups[-1]) + entry.n_bytes > max_file_bytes:
            groups.append([])
        groups[-1].append((layout, entry))
    with new_directory(path) as folder:
        copy_files(companions, folder)
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            name = HF_SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            writer = safetensors.Writer(folder / name, [entry for _, entry in group])
            for layout, entry in group:
                writer.put(entry, _bytes(tensors, layout, 0, 1, staging))
                weight_map[entry.key] = name
            writer.close()
        if len(groups) > 1:
            total = sum(entry.n_bytes for group in groups for _, entry in group)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(folder / HF_INDEX, index)
        write_json(folder / HF_CONFIG, to_hf(config) | {"dtype": str(dtype).removeprefix("torch.")})
        for name, content in to_hf_companions(config).items():
            if not (folder / name).exists():  # what came with the source describes it better
                write_json(folder / name, content)


def _save_meta(
    tensors: Mapping[str, Tensor],
    config: LlamaConfig,
    dtype: torch.dtype,
    path: Path,
    shards: int,
    companions: Sequence[Path],
) -> None:
    empty, staging = _empty(config), Staging()
    layouts = names.meta_layouts(config)
    _check_shards(config, empty, layouts, shards)
    entries = [[Entry(x.key, dtype, _shape(empty, x, shard, shards)) for x in layouts] for shard in range(shards)]
    with new_directory(path) as folder:
        copy_files(companions, folder)
        writers = [pth.Writer(folder / f"consolidated.{n:02d}.pth", entries[n]) for n in range(shards)]
        for number, layout in enumerate(layouts):
            values = {part.name: tensors[part.name] for part in layout.parts}  # asked for once, not once per shard
            for shard, writer in enumerate(writers):
                writer.put(entries[shard][number], _bytes(values, layout, shard, shards, staging))
        for writer in writers:
            writer.close()
        write_json(folder / META_CONFIG, to_meta(config))


def _shape(empty: Mapping[str, Tensor], layout: Layout, shard: int, n_shards: int) -> tuple[int, ...]:
    return shape_at_rest([region(empty[part.name], part, shard, n_shards) for part in layout.parts], layout)


def _bytes(
    tensors: Mapping[str, Tensor], layout: Layout, shard: int, n_shards: int, staging: Staging
) -> Iterator[memoryview]:
    """The bytes of one tensor of a file, part after part."""
    for part in layout.parts:
        view = region(tensors[part.name], part, shard, n_shards)
        yield from pieces(view, staging, in_first=layout.in_first)


def _check_shards(config: LlamaConfig, empty: Mapping[str, Tensor], layouts: Sequence[Layout], shards: int) -> None:
    """Meta's code gives each shard whole heads, so heads must divide, not only rows."""
    if not 1 <= shards <= 64:
        raise WeightsError(f"shards: {shards} is not within 1..64")
    counts = {"n_heads": config.text.n_heads, "n_kv_heads": config.text.n_kv_heads}
    if config.vision is not None:
        counts["vision n_heads"] = config.vision.n_heads
    counts |= {
        p.name: region(empty[p.name], p, 0, 1).shape[p.axis] for x in layouts for p in x.parts if p.axis is not None
    }
    for what, count in counts.items():
        if count % shards:
            raise WeightsError(f"shards: {shards} does not divide {count}, the size of {what}; use a divisor of it")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not."""
    path = path.absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise WeightsError(f"{path}: exists already; give a new or empty directory")
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"  # a process's number may come again
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}); check space and permissions") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_files(files: Sequence[Path], folder: Path) -> None:
    """Copies files into a folder, names kept."""
    for file in files:
        shutil.copyfile(file, folder / file.name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON that ends with a line break."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
