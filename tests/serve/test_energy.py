from pathlib import Path

import pytest

from puna.serve.energy import Meter, meters


def test_a_meter_counts_from_when_it_was_made_and_over_the_end_of_its_range() -> None:
    counts = iter([900, 950, 20, 20])
    meter = Meter("a", lambda: next(counts), 0.5, 1000)
    assert [meter.joules() for _ in range(3)] == [25.0, 60.0, 60.0]


def test_whole_processors_are_read_and_what_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    for name, files in {
        "intel-rapl:0": {"name": "package-0\n", "energy_uj": "5000000", "max_energy_range_uj": "9000000"},
        "intel-rapl:0:1": {"name": "core\n", "energy_uj": "1", "max_energy_range_uj": "9"},
        "intel-rapl:1": {"name": "package-1\n"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text, "utf-8")
    found = {meter.name: meter for meter in meters(tmp_path)}
    assert "package-0" in found and "core" not in found and "package-1" not in found
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("6500000", "utf-8")
    assert found["package-0"].joules() == pytest.approx(1.5)
