"""The safetensors format against its own library, and against damage."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.weights.safetensors import MAX_HEADER_BYTES, Entry, Writer, index
from puna.weights.stored import Staging, pieces, read_whole

TENSORS = {
    "a": torch.randn(3, 5),
    "b.weight": torch.randn(4).bfloat16(),
    "c": torch.randn(2, 3, 4).half(),
    "scale": torch.tensor(0.5),
    "fp8": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "count": torch.arange(7),
}


def written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    entries = [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
    writer = Writer(path, entries)
    for entry in entries:
        tensor = tensors[entry.key]
        writer.put(entry, pieces(tensor if tensor.dim() else tensor[None], Staging(), in_first=False))
    writer.close()
    return path


def with_header(path: Path, header: Any, n_data_bytes: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * n_data_bytes)
    return path


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(TENSORS, tmp_path / "x")
    read = {stored.key: read_whole(stored) for stored in index(tmp_path / "x")}
    assert read.keys() == TENSORS.keys()
    assert all(read[key].dtype == x.dtype and torch.equal(read[key].float(), x.float()) for key, x in TENSORS.items())


def test_library_reads_what_we_write(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    read = library.load_file(written(tmp_path / "x", TENSORS))
    assert read.keys() == TENSORS.keys()
    assert all(read[key].dtype == x.dtype and torch.equal(read[key].float(), x.float()) for key, x in TENSORS.items())


def test_data_begin_on_a_multiple_of_eight_bytes(tmp_path: Path) -> None:
    for n in range(1, 9):
        assert index(written(tmp_path / "x", {"k" * n: torch.ones(2)}))[0].offset % 8 == 0


@pytest.mark.parametrize("n_bytes", [0, 5, 8, 30, 200, -9])
def test_truncated_file_is_refused(n_bytes: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x", TENSORS)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(WeightsError, match=f"{path}.*truncated"):
        index(path)


def test_truncated_file_names_the_first_tensor_that_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "x", TENSORS)
    path.write_bytes(path.read_bytes()[:-60])  # count has 56 bytes, fp8 before it 16
    with pytest.raises(WeightsError, match="'fp8' in"):
        index(path)


@pytest.mark.parametrize("length", [0, 1 << 62, MAX_HEADER_BYTES + 1])
def test_impossible_header_length_is_refused_without_reading_it(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(WeightsError, match=f"header of {length} bytes"):
        index(path)


@pytest.mark.parametrize(
    ("header", "n_data_bytes", "named"),
    [
        (b"not json at all", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b"\xff\xfe{}", 0, "not JSON"),
        ([1, 2], 0, "not an object"),
        ({"w": 3}, 0, "'w' in .*no dtype"),
        ({"w": {"dtype": "F32", "shape": [1]}}, 4, "'w' in .*no dtype"),
        ({"w": entry("F4", [2], 0, 1)}, 1, "'w' in .*'F4' is not supported"),
        ({"w": entry("F32", [-1], 0, 4)}, 4, "'w' in .*impossible"),
        ({"w": entry("F32", ["1"], 0, 4)}, 4, "'w' in .*impossible"),
        ({"w": entry("F32", [1], -4, 0)}, 4, "'w' in .*impossible"),
        ({"w": entry("F32", [2], 0, 4)}, 4, "'w' in .*which has 8"),
        ({"w": entry("F32", [1 << 40, 1 << 40], 0, 4)}, 4, "'w' in .*damaged"),
        ({"w": entry("F32", [1], 4, 8)}, 8, "'w' in .*damaged"),
        ({"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 0, 4)}, 4, "'w' in .*damaged"),
        ({"w": entry("F32", [1], 0, 4)}, 9, "damaged"),
        (b'{"w": {}, "w": {}}', 0, "'w' in .*twice"),
    ],
)
def test_header_that_contradicts_itself_is_refused(header: Any, n_data_bytes: int, named: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=named) as caught:
        index(with_header(tmp_path / "x", header, n_data_bytes))
    assert str(tmp_path / "x") in str(caught.value) and "\n" not in str(caught.value)


def test_random_damage_is_either_harmless_or_one_line(tmp_path: Path) -> None:
    sound, chance = written(tmp_path / "sound", TENSORS).read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 1, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "x").write_bytes(damaged)
        try:
            index(tmp_path / "x")
        except WeightsError as error:
            assert str(tmp_path / "x") in str(error) and "\n" not in str(error)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        index(tmp_path / "x")
