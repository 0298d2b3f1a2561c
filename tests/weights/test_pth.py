"""Meta's pickled files: torch reads what we write, we read what torch writes, and nothing in a file ever runs."""

import io
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.weights.pth import Writer, index
from puna.weights.safetensors import Entry
from puna.weights.stored import Staging, pieces, read_whole

STATE = {
    "layers.0.w": torch.randn(3, 5).bfloat16(),
    "norm.weight": torch.randn(7),
    "experts": torch.randn(2, 3, 4).half(),
    "fp8": torch.randn(4, 4).to(torch.float8_e4m3fn),
}


def written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    entries = [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
    writer = Writer(path, entries)
    for entry in entries:
        writer.put(entry, pieces(tensors[entry.key], Staging(), in_first=False))
    writer.close()
    return path


def test_files_of_torch_are_read(tmp_path: Path) -> None:
    shared = torch.arange(20.0).bfloat16()
    state = STATE | {"parameter": torch.nn.Parameter(torch.randn(2, 2)), "slice": shared[4:10].view(2, 3)}
    torch.save(state, tmp_path / "x.pth")
    read = {stored.key: read_whole(stored) for stored in index(tmp_path / "x.pth")}
    assert read.keys() == state.keys()
    assert all(read[key].dtype == x.dtype and torch.equal(read[key].float(), x.float()) for key, x in state.items())


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write_without_trust(mmap: bool, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in STATE.items() if key != "fp8"}
    read = torch.load(written(tmp_path / "x.pth", state), weights_only=True, mmap=mmap)
    assert list(read) == list(state)
    assert all(read[key].dtype == x.dtype and torch.equal(read[key], x) for key, x in state.items())
    assert all(x.data_ptr() % 64 == 0 for x in read.values())


def test_archive_is_sound_and_equal_weights_make_equal_files(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in STATE.items() if key != "fp8"}
    one, two = written(tmp_path / "1.pth", state), written(tmp_path / "2.pth", state)
    assert zipfile.ZipFile(one).testzip() is None
    assert one.read_bytes() == two.read_bytes()


def test_states_of_metas_fused_modules_are_left_out(tmp_path: Path) -> None:
    torch.save(STATE | {"layers.0.attention.wqkv._extra_state": io.BytesIO(b"state")}, tmp_path / "x.pth")
    assert {stored.key for stored in index(tmp_path / "x.pth")} == STATE.keys()


class Bomb:
    """What a malicious file holds: a call that runs while it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, os.mkdir, subprocess.check_call, eval])
def test_code_in_a_file_is_refused_and_does_not_run(function: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    argument = {eval: f"open({str(trace)!r}, 'w')", os.mkdir: str(trace)}.get(function, f"touch {trace}")
    torch.save({"w": torch.ones(2), "x": Bomb(function, argument)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: holds more than tensors.*could run code") as caught:
        index(tmp_path / "x.pth")
    assert not trace.exists()
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_plain_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Bomb(os.mkdir, str(tmp_path / "trace"))))
    with pytest.raises(WeightsError, match=r"x\.pth: truncated, or not a torch file"):
        index(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.95])
def test_truncated_file_is_refused(fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(WeightsError, match=r"x\.pth: truncated"):
        index(path)


def test_old_format_of_torch_is_refused(tmp_path: Path) -> None:
    torch.save(STATE["norm.weight"], tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"x\.pth"):
        index(tmp_path / "x.pth")


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"x\.pth: .* is compressed"):
        index(tmp_path / "x.pth")


def test_zip_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        index(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), {3: torch.ones(2)}])
def test_anything_but_names_and_tensors_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="not a mapping of names to tensors"):
        index(tmp_path / "x.pth")


def test_random_damage_is_either_harmless_or_one_line(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "sound.pth")
    sound, chance = (tmp_path / "sound.pth").read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 1, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "x.pth").write_bytes(damaged)
        try:
            index(tmp_path / "x.pth")
        except WeightsError as error:
            assert "x.pth" in str(error) and "\n" not in str(error)


def test_view_that_is_not_contiguous_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(3, 4).T}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"'w' in .*strides"):
        index(tmp_path / "x.pth")
