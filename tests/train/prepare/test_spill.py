from pathlib import Path

import numpy as np

from puna.train.prepare.spill import blocks, load, n_parts, split

KIND = np.dtype([("key", "<u8"), ("n", "<i8")])


def test_same_keys_are_in_one_part_in_the_order_they_came(tmp_path: Path) -> None:
    records = np.zeros(5000, KIND)
    records["key"] = np.random.default_rng(1).integers(0, 2**64, 500, np.uint64).repeat(10)
    np.random.default_rng(2).shuffle(records["key"])
    records["n"] = np.arange(5000)
    paths = split(iter(np.array_split(records, 7)), "key", tmp_path / "parts", 6)
    parts = [load(path, KIND) for path in paths]
    assert len(parts) == 6 and all(len(part) for part in parts)
    assert sum(len(np.unique(part["key"])) for part in parts) == 500
    assert all((np.diff(part["n"]) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts), order="n"), records)


def test_blocks_are_the_file(tmp_path: Path) -> None:
    records = np.arange(2000).view(KIND)
    records.tofile(tmp_path / "records")
    read = list(blocks(tmp_path / "records", KIND, 1000))
    assert max(map(len, read)) == 62 and np.array_equal(np.concatenate(read), records)


def test_parts_fit_the_memory() -> None:
    for n in (0, 1, 10**4, 10**7):
        parts = n_parts(n, KIND, 2**24, 4)
        assert parts >= 1 and n * KIND.itemsize * 4 / parts <= 2**24
