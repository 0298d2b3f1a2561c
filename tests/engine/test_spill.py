from pathlib import Path

import pytest

from puna.engine.blocks import Counts, Spill
from puna.engine.engine import Engine
from puna.engine.request import Output, Request, Sampling
from puna.engine.spill import FileSpill, MemorySpill
from puna.errors import DeviceError
from puna.model.transformer import Llama
from tests.reference.tiny import random_ids


@pytest.fixture(params=["memory", "file"])
def spill(request: pytest.FixtureRequest, tmp_path: Path) -> Spill:
    return MemorySpill(100) if request.param == "memory" else FileSpill(tmp_path / "spill", 100)


def test_contents_come_back_and_the_coldest_goes_first(spill: Spill) -> None:
    for i in range(10):
        spill.put("global", bytes([i]), lambda i=i: bytes([i]) * 10)  # type: ignore[misc]
    spill.put("chunked", b"\0", lambda: b"c" * 5)  # another kind, and one too much
    assert not spill.has("global", b"\0")
    assert spill.get("chunked", b"\0") == b"c" * 5
    assert spill.get("global", b"\1") == b"\1" * 10  # is warm now
    spill.put("global", b"\2", lambda: pytest.fail("was asked for again"))
    spill.put("global", b"new", lambda: b"n" * 10)
    assert [spill.has("global", bytes([i])) for i in (1, 2, 3, 4)] == [True, True, False, True]
    assert spill.get("global", b"new") == b"n" * 10
    assert all(spill.get("global", bytes([i])) == bytes([i]) * 10 for i in (1, 2, 4, 5, 6, 7, 8, 9))
    spill.clear()
    assert not spill.has("global", b"new")


def test_what_is_larger_than_the_spill_is_let_go(spill: Spill) -> None:
    spill.put("global", b"a", lambda: b"." * 101)
    assert not spill.has("global", b"a")


def test_files_use_their_places_again_and_are_removed(tmp_path: Path) -> None:
    spill = FileSpill(tmp_path, 30)
    for i in range(100):
        spill.put("global", bytes([i]), lambda: b"." * 10)
    assert (tmp_path / "global.blocks").stat().st_size == 30
    spill.close()
    assert not list(tmp_path.iterdir())
    forgotten = FileSpill(tmp_path, 30)
    del forgotten
    assert not list(tmp_path.iterdir())


def test_two_never_write_to_the_same_files(tmp_path: Path) -> None:
    spill = FileSpill(tmp_path, 30)
    spill.put("global", b"a", lambda: b"." * 10)
    with pytest.raises(DeviceError, match="choose another"):
        FileSpill(tmp_path, 30)
    assert spill.get("global", b"a") == b"." * 10


def test_files_that_fail_are_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DeviceError, match="taken for spilled keys"):
        FileSpill(tmp_path / "taken", 30)
    spill = FileSpill(tmp_path, 30)
    spill.put("global", b"a", lambda: b"." * 10)
    (tmp_path / "global.blocks").write_bytes(b"")
    with pytest.raises(DeviceError, match="only a part"):
        spill.get("global", b"a")


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_prefix_that_was_spilled_is_restored_and_gives_the_same(
    model: Llama, tmp_path: Path, place: str, kv_dtype: str | None
) -> None:
    spill = MemorySpill(10**6) if place == "memory" else FileSpill(tmp_path, 10**6)
    engine = Engine(model, n_blocks=Counts(7, 3), spill=spill, kv_dtype=kv_dtype)
    sampling = Sampling(temperature=0, max_new_tokens=5, n_logprobs=2)
    requests = [Request(ids=random_ids(45, seed), sampling=sampling) for seed in range(3)]
    cold: list[list[Output]] = []
    for request in requests:  # each fills the cache and pushes the one before out
        cold += engine.run([request])
        engine.check_integrity()
    before = engine.load.n_cached_tokens
    assert before == 0
    for i in (0, 2, 1, 0):
        (warm,) = engine.run([requests[i]])
        assert warm[0].ids == cold[i][0].ids
        for one, other in zip(warm[0].logprobs, cold[i][0].logprobs, strict=True):
            assert one.chosen == pytest.approx(other.chosen, abs=1e-5)  # the same keys, sums in another order
        engine.check_integrity()
    assert engine.load.n_cached_tokens == 4 * 40
