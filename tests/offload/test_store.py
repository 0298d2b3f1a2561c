"""Experts on disk and in host memory: written once, complete or not there, and what is wrong with them is named."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from puna.errors import WeightsError
from puna.offload import record as records
from puna.offload.record import PAGE_BYTES, Pair
from puna.offload.store import DiskStore, HostStore, Key, Layers, pages, write_missing
from tests.offload.conftest import SOURCES, make_store, numbered

ROOT = Path(__file__).parents[2]
EXPERTS = Layers((1, 3), 4)


def never() -> bool:
    return False


@pytest.mark.parametrize("source", SOURCES)
def test_every_expert_comes_back(source: str, tmp_path: Path) -> None:
    store = make_store(source, tmp_path, EXPERTS, numbered)
    room = pages(store.record.n_bytes)
    for key in EXPERTS.all_keys():
        assert store.read(key, room, never)
        for ours, theirs in zip(records.open_pair(store.record, room), numbered(key), strict=True):
            assert torch.equal(ours[0], theirs)
    store.close()


@pytest.mark.parametrize("source", SOURCES)
def test_reading_is_given_up_when_told_so(source: str, tmp_path: Path) -> None:
    store = make_store(source, tmp_path, EXPERTS, numbered)
    assert not store.read(Key(1, 0), pages(store.record.n_bytes), lambda: True)
    store.close()


def test_progress_counts_experts(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_missing(tmp_path, "test", EXPERTS, numbered, lambda done, n: told.append((done, n)))
    assert told == [(4, 8), (8, 8)]
    told.clear()
    HostStore(EXPERTS, numbered, locked=False, progress=lambda done, n: told.append((done, n)))
    assert told == [(n, 8) for n in range(1, 9)]


def test_a_layer_that_is_there_is_not_read_again(tmp_path: Path) -> None:
    asked: list[Key] = []

    def read(key: Key) -> Pair:
        asked.append(key)
        return numbered(key)

    write_missing(tmp_path, "test", EXPERTS, read)
    assert asked == EXPERTS.all_keys()
    asked.clear()
    write_missing(tmp_path, "test", EXPERTS, read)
    assert not asked
    (tmp_path / "layer-003.experts").unlink()
    write_missing(tmp_path, "test", EXPERTS, read)
    assert asked == [Key(3, expert) for expert in range(4)]


def test_who_is_interrupted_leaves_whole_layers_and_goes_on(tmp_path: Path) -> None:
    def read(key: Key) -> Pair:
        if key == Key(3, 2):
            raise KeyboardInterrupt
        return numbered(key)

    with pytest.raises(KeyboardInterrupt):
        write_missing(tmp_path, "test", EXPERTS, read)
    assert [path.name for path in tmp_path.iterdir()] == ["layer-001.experts"]
    write_missing(tmp_path, "test", EXPERTS, numbered)
    DiskStore(tmp_path, "test", EXPERTS).close()


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "layer-001.partial").write_bytes(b"\1" * 100_000)
    write_missing(tmp_path, "test", EXPERTS, numbered)
    DiskStore(tmp_path, "test", EXPERTS).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer-001.experts", "layer-003.experts"]


def test_whoever_comes_while_another_writes_waits_and_writes_nothing(tmp_path: Path) -> None:
    asked: list[Key] = []

    def read(key: Key) -> Pair:
        asked.append(key)
        return numbered(key)

    threads = [
        threading.Thread(target=write_missing, args=(tmp_path, "test", EXPERTS, read), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert asked == EXPERTS.all_keys()
    DiskStore(tmp_path, "test", EXPERTS).close()


def test_a_layer_that_is_cut_off_is_named_with_the_expert(tmp_path: Path) -> None:
    write_missing(tmp_path, "test", EXPERTS, numbered)
    path = tmp_path / "layer-003.experts"
    os.truncate(path, PAGE_BYTES + 2 * (path.stat().st_size - PAGE_BYTES) // 4 + 5)
    with pytest.raises(WeightsError, match=r"layer-003\.experts.*cuts off expert 2; remove it"):
        DiskStore(tmp_path, "test", EXPERTS)


def test_a_layer_that_is_cut_off_later_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_missing(tmp_path, "test", EXPERTS, numbered)
    store = DiskStore(tmp_path, "test", EXPERTS)
    os.truncate(tmp_path / "layer-001.experts", PAGE_BYTES + store.record.n_bytes + 5)
    room = pages(store.record.n_bytes)
    assert store.read(Key(1, 0), room, never)
    for expert in (1, 2):
        with pytest.raises(WeightsError, match=rf"expert {expert} of layer 1 in .*layer-001\.experts: the file ends"):
            store.read(Key(1, expert), room, never)
    store.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 9000, b"[1]" + b"\n" * 9000])
def test_what_is_no_file_of_experts_is_named(content: bytes, tmp_path: Path) -> None:
    write_missing(tmp_path, "test", EXPERTS, numbered)
    (tmp_path / "layer-001.experts").write_bytes(content)
    with pytest.raises(WeightsError, match=r"layer-001\.experts: is no file of experts"):
        DiskStore(tmp_path, "test", EXPERTS)


def test_experts_of_another_model_or_layer_are_refused(tmp_path: Path) -> None:
    write_missing(tmp_path, "other", EXPERTS, numbered)
    with pytest.raises(WeightsError, match="another model or layer"):
        DiskStore(tmp_path, "test", EXPERTS)
    (tmp_path / "layer-001.experts").replace(tmp_path / "layer-003.experts")
    write_missing(tmp_path, "other", EXPERTS, numbered)
    with pytest.raises(WeightsError, match=r"layer-003\.experts: holds the experts of another model or layer"):
        DiskStore(tmp_path, "other", EXPERTS)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"layer-001\.experts: cannot be read \(No such file"):
        DiskStore(tmp_path, "test", EXPERTS)


def test_experts_that_the_disk_has_no_room_for_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"the experts take .* GB and its disk has .* GB left; give a folder"):
        write_missing(tmp_path, "test", Layers((1, 3), 1 << 50), numbered)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_named_and_nothing_half_stays(tmp_path: Path) -> None:
    """The limit of a process on the size of its files stands in for the disk: it is EFBIG that comes."""
    program = f"""
import resource, signal
from pathlib import Path
from puna.errors import WeightsError
from puna.offload.store import Layers, write_missing
from tests.offload.conftest import numbered
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    write_missing(Path({str(tmp_path)!r}), "test", Layers((1, 3), 4), numbered)
except WeightsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "cannot be written (File too large); give another folder, or make room" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
