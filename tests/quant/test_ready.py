"""A model that is kept and filled again is the same model, and nothing else is taken for it."""

import random
from pathlib import Path

import pytest
import torch

from puna.errors import WeightsError
from puna.kernels import native
from puna.model.transformer import Llama
from puna.quant import ready, swap
from tests.reference.tiny import random_ids, random_model, read_whole, tiny_config


def empty() -> Llama:
    with torch.device("meta"):
        return Llama(tiny_config())


def plain(weight: object) -> object:
    return weight


@pytest.mark.parametrize("to", [None, "int8", "fp8"])
@pytest.mark.parametrize("packs", [False, True])
def test_a_kept_model_gives_the_same_logits(tmp_path: Path, to: swap.Format | None, packs: bool) -> None:
    if packs and not native.available():
        pytest.skip("the C++ kernels are not built for this processor")
    model = random_model(tiny_config())
    place = swap.placer(None if to is None else swap.Policy(to=to), arrange=swap.packed if packs else plain)  # type: ignore[arg-type]
    for name, parameter in list(model.named_parameters()):
        place(model, name, parameter.detach())
    ready.keep(model, tmp_path / "model", "one")
    told: list[tuple[int, int]] = []
    again = empty()
    assert ready.fill(again, tmp_path / "model", "one", lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == (tmp_path / "model").stat().st_size
    assert {name: p.shape for name, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    ids = random_ids(20, seed=1)
    assert torch.equal(read_whole(again.eval(), ids), read_whole(model, ids))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not native.available(), reason="the C++ kernels are not built for this processor")
def test_experts_are_right_while_they_arrive_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.FileMemory, "STEP", 4096)  # many steps
    model = random_model(tiny_config())
    for name, parameter in list(model.named_parameters()):
        swap.placer()(model, name, parameter.detach())
    ready.keep(model, tmp_path / "model", "one")
    again, ids = empty(), random_ids(20, seed=1)
    arrival = ready.fill(again, tmp_path / "model", "one")
    (tmp_path / "model").unlink()  # a file that is open stays
    expected = read_whole(model, ids)
    for _ in range(5):
        assert torch.equal(read_whole(again.eval(), ids), expected)
    assert arrival is not None
    arrival.wait()
    assert torch.equal(read_whole(again, ids), expected)


@pytest.mark.skipif(not native.available(), reason="the C++ kernels are not built for this processor")
def test_a_file_as_memory_has_the_same_bytes_before_and_after_it_settles(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(3 * (1 << 21) + 5000)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        memory = native.FileMemory(file.fileno(), 4096, len(content) - 4096 - 7)
        tensor, expected = memory.tensor(), content[4096:-7]
        assert bytes(tensor.numpy().data) == expected
        while memory.settle():
            assert bytes(tensor.numpy().data) == expected
        assert bytes(tensor.numpy().data) == expected
        with pytest.raises(OSError, match="mapped"):
            native.FileMemory(-1, 0, 4096)


def test_another_identity_and_no_file_fill_nothing(tmp_path: Path) -> None:
    ready.keep(random_model(tiny_config()), tmp_path / "model", "one")
    assert not ready.fill(empty(), tmp_path / "model", "another")
    assert not ready.fill(empty(), tmp_path / "elsewhere", "one")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model"
    ready.keep(random_model(tiny_config()), file, "one")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"{}\n", b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match="model"):
            ready.fill(empty(), file, "one")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        ready.keep(random_model(tiny_config()), tmp_path / "file" / "model", "one")
