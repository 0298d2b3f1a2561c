import json

from puna.bench.machine import Disturbance, Machine
from puna.bench.record import Figure, Record
from puna.bench.work import Limits


def record() -> Record:
    return Record(
        model="some",
        quantize="int4",
        dtype="bfloat16",
        runs=3,
        temperature=0.0,
        machine=Machine("a processor", 2, 2, 24.0, None),
        disturbance=Disturbance(0.001, 0.02, 1.5),
        limits=Limits(47e9, 900e9),
        figures={
            "prefill_512_tok_s": Figure(samples=(90.0, 120.0, 100.0), floor=200.0),
            "load_s": Figure(samples=(2.5,), more_is_better=False),
            "peak_rss_gib": Figure(samples=(4.0,), floor=3.0, more_is_better=False),
        },
    )


def test_the_median_counts() -> None:
    assert record().figures["prefill_512_tok_s"].median == 100


def test_share_of_the_floor_is_one_at_best_whichever_way_is_better() -> None:
    figures = record().figures
    assert figures["prefill_512_tok_s"].share == 0.5
    assert figures["peak_rss_gib"].share == 0.75
    assert figures["load_s"].share is None


def test_document_has_the_names_that_other_systems_are_measured_under() -> None:
    document = json.loads(json.dumps(record().to_json()))
    assert document["peer"] == "puna"
    assert (document["prefill_512_tok_s"], document["load_s"], document["peak_rss_gib"]) == (100, 2.5, 4)
    assert document["floors"] == {"prefill_512_tok_s": 200, "peak_rss_gib": 3}
    assert document["shares"] == {"prefill_512_tok_s": 0.5, "peak_rss_gib": 0.75}
    assert document["samples"]["prefill_512_tok_s"] == [90, 120, 100]
    assert document["disturbance"] == {"steal_share": 0.001, "others_share": 0.02, "load_1m": 1.5}
    assert document["limits"] == {"read_gbs": 47, "gemm_gflops": 900}
    assert set(document["versions"]) == {"puna", "torch"}


def test_table_shows_every_figure_and_how_quiet_it_was() -> None:
    lines = record().table().splitlines()
    assert "int4 beside bfloat16" in lines[0] and "a processor" in lines[0]
    assert "steal 0.1%" in lines[1] and "other programs 2.0%" in lines[1]
    assert lines[-3].split() == ["prefill_512_tok_s", "100.00", "90.00", "120.00", "200.00", "50.0%"]
    assert lines[-2].split() == ["load_s", "2.50", "2.50", "2.50"]


def test_table_says_what_is_unknown() -> None:
    one = record()
    quiet = Record(
        **{name: getattr(one, name) for name in one.__slots__} | {"disturbance": Disturbance(None, None, None)}
    )
    assert "steal unknown" in quiet.table()
