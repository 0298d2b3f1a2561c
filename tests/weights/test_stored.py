"""Tensors between files and memory: what `pieces` writes, `fill` reads back, however the pieces are cut."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.errors import WeightsError
from puna.weights import stored as module
from puna.weights.names import Layout, Part
from puna.weights.stored import Staging, Stored, fill, pieces, read_whole, region, shape_at_rest


def at_rest(source: Tensor, folder: Path, *, in_first: bool, before: int = 0) -> Stored:
    """Writes `source` behind `before` other elements."""
    data = b"".join(bytes(piece) for piece in pieces(source, Staging(), in_first=in_first))
    path = folder / "tensor"
    path.write_bytes(b"\7" * before * source.element_size() + data)
    return Stored(path, "a.key", source.dtype, tuple(source.shape), 0)


@pytest.mark.parametrize("shape", [(5,), (7, 3), (70, 90), (3, 6, 5), (2, 100, 40)])
@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("piece_bytes", [1 << 24, 64, 1])
def test_fill_reads_what_pieces_wrote(
    shape: tuple[int, ...], in_first: bool, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    source = torch.randn(shape).bfloat16()
    stored = at_rest(source, tmp_path, in_first=in_first, before=11)
    target = torch.empty_like(source)
    fill(target, stored, 11, None, Staging(), in_first=in_first)
    assert torch.equal(target, source)


def test_matrices_that_lie_input_first_are_the_transposed_ones(tmp_path: Path) -> None:
    source = torch.randn(3, 6, 5)
    stored = at_rest(source, tmp_path, in_first=True)
    assert torch.equal(read_whole(stored._replace(shape=(3, 5, 6))), source.transpose(1, 2))


@pytest.mark.parametrize("in_first", [False, True])
def test_fill_writes_only_its_own_part_of_a_larger_parameter(in_first: bool, tmp_path: Path) -> None:
    whole = torch.zeros(2, 8, 6)
    part = Part("x", axis=-2, half=1)
    source = torch.randn(2, 2, 6)
    fill(region(whole, part, 1, 2), at_rest(source, tmp_path, in_first=in_first), 0, None, Staging(), in_first=in_first)
    assert torch.equal(whole[:, 6:8], source) and not whole[:, :6].any()


@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("scale_shape", [(2, 40, 1), (2, 1, 1), (1, 1, 1)])
def test_scaled_numbers_are_multiplied_in_float32_and_rounded_once(
    scale_shape: tuple[int, ...], in_first: bool, tmp_path: Path
) -> None:
    source = torch.randn(2, 40, 33).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape) + 0.5
    target = torch.empty(2, 40, 33, dtype=torch.bfloat16)
    fill(target, at_rest(source, tmp_path, in_first=in_first), 0, scale, Staging(), in_first=in_first)
    assert torch.equal(target, (source.float() * scale).bfloat16())


def test_dtype_of_the_parameter_is_what_it_is_filled_with(tmp_path: Path) -> None:
    source = torch.randn(40, 40).bfloat16()
    target = torch.empty(40, 40)
    fill(target, at_rest(source, tmp_path, in_first=False), 0, None, Staging(), in_first=False)
    assert torch.equal(target, source.float())


def test_layouts_give_the_shape_of_stacked_turned_and_merged_tensors() -> None:
    query, key = torch.empty(6, 4), torch.empty(2, 4)
    parts = (Part("q", -2), Part("k", -2))
    assert shape_at_rest([query, key], Layout("qk", parts, in_first=False, merged=False)) == (8, 4)
    experts = torch.empty(3, 6, 4)
    assert shape_at_rest([experts], Layout("e", parts[:1], in_first=True, merged=False)) == (3, 4, 6)
    assert shape_at_rest([experts], Layout("e", parts[:1], in_first=True, merged=True)) == (12, 6)


def test_file_that_ends_too_early_is_named_with_its_key(tmp_path: Path) -> None:
    stored = at_rest(torch.randn(4, 4), tmp_path, in_first=False)
    with pytest.raises(WeightsError, match=r"'a.key' in .*tensor: the file ends"):
        fill(torch.empty(5, 4), stored, 0, None, Staging(), in_first=False)


def test_file_that_vanished_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'a.key' in .*gone: cannot be read \(No such file"):
        read_whole(Stored(tmp_path / "gone", "a.key", torch.float32, (1,), 0))
