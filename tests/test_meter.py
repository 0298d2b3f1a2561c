"""Energy is metered or declared, never guessed, and can be worked out by hand."""

import time
from pathlib import Path

import pytest

from puna.meter import Meter, Sampled, Site, Stopwatch, declared, emitted, meters


def test_a_meter_counts_from_when_it_was_made_and_over_the_end_of_its_range() -> None:
    counts = iter([900, 950, 20, 20])
    meter = Meter("a", "rapl", lambda: next(counts), 0.5, 1000)
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


def test_power_alone_is_summed_up_over_time() -> None:
    sampled = Sampled(lambda: 50.0, seconds=0.01)
    began = time.monotonic()
    time.sleep(0.2)
    sampled.close()
    assert 0 < sampled() <= 50.0 * (time.monotonic() - began + 0.1)


def test_what_is_not_metered_is_as_declared_and_what_is_not_declared_is_not_known() -> None:
    times = iter([0.0, 3600.0])
    site = Site(processors=8, tdp_watts=700, utilisation=0.5)
    with Stopwatch(site, clock=lambda: next(times)) as watch:
        watch._meters = []
        assert watch.used().joules == {"declared": 8 * 700 * 0.5 * 3600}
    times = iter([0.0, 3600.0])
    with Stopwatch(Site(), [], clock=lambda: next(times)) as watch:
        used = watch.used()
    assert used.joules is None and emitted(used, Site()) is None


def test_metered_joules_are_told_by_method() -> None:
    counts = iter([0, 0, 10, 0, 0, 7])
    own = [Meter("a", "rapl", lambda: next(counts), 1.0)]
    with Stopwatch(Site(tdp_watts=100), own) as watch:
        assert watch.used().joules == {"rapl": 10.0}


@pytest.mark.parametrize(
    ("hours", "tonnes"), [(5.0e6, 1354), (2.38e6, 645), (7.38e6, 1999)], ids=["Scout", "Maverick", "total"]
)
def test_the_rows_of_the_card_come_out(hours: float, tonnes: int) -> None:
    """700 W and 0.387 kg/kWh, which all rows of the card's table share within their digits."""
    site = Site(location_kg_per_kwh=0.387)
    found = emitted(declared(hours, 700), site)
    assert found is not None and found.location_kg is not None and found.market_kg is None
    assert found.kwh == pytest.approx(hours * 0.7)
    assert abs(found.location_kg / 1000 - tonnes) < 1


def test_a_factor_of_zero_is_a_factor_and_none_is_none() -> None:
    """All electricity of Llama 4's training was matched by clean sources: by what was bought it emitted nothing."""
    found = emitted(declared(1.0, 700), Site(location_kg_per_kwh=None, market_kg_per_kwh=0.0))
    assert found is not None and found.location_kg is None and found.market_kg == 0
