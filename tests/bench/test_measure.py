import itertools

import pytest
import torch

from puna.bench import measure
from puna.bench.record import Record
from puna.chat import Assistant, load
from puna.engine.engine import Engine
from puna.errors import ConfigError
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    torch.set_num_threads(1)
    return load(str(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")), device="cpu")


def measured(assistant: Assistant, **changes: object) -> Record:
    """Measures with small probes of the machine, which is of no interest here."""
    options = {"quantize": None, "only": [], "runs": 2, "temperature": 0.0, "progress": lambda line: None}
    options |= {"read_size": 2**20, "product_size": 64} | changes
    return measure.measure("tiny", lambda: assistant, **options)  # type: ignore[arg-type]


def test_names_of_cases_are_those_of_the_document() -> None:
    assert measure.case("prefill_512") == measure.case("prefill_512_tok_s") == ("prefill_512", None, 512)
    assert measure.case("decode_b16_ctx128") == ("decode_b16_ctx128", 16, 128)


@pytest.mark.parametrize("name", ["prefill", "prefill_0", "decode_b0_ctx1", "decode_b1", "load_s", ""])
def test_a_name_that_is_no_case_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="prefill_512 or decode_b16_ctx128"):
        measure.case(name)


def test_usual_cases_that_do_not_fit_the_context_are_left_out() -> None:
    names = [each.name for each in measure.choose_cases(None, room=4096)]
    assert names == [name for name in measure.DEFAULT_CASES if name != "decode_b1_ctx16384"]


def test_a_beginning_chooses_the_usual_cases_under_it() -> None:
    def chosen(*only: str) -> list[str]:
        return [each.name for each in measure.choose_cases(only, room=4096)]

    assert chosen("prefill") == ["prefill_512", "prefill_2048"]
    assert chosen("decode_b1") == ["decode_b1_ctx128", "decode_b1_ctx2048"]
    assert chosen("decode_b1", "decode_b1_ctx128", "prefill_7") == [
        "decode_b1_ctx128",
        "decode_b1_ctx2048",
        "prefill_7",
    ]
    assert chosen() == []


def test_a_case_that_is_asked_for_and_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="the context has 4096"):
        measure.choose_cases(["prefill_4096"], room=4096)


def test_every_figure_is_reported_beside_its_floor(tiny: Assistant) -> None:
    told: list[str] = []
    record = measured(tiny, only=["prefill_20", "decode_b1_ctx10", "decode_b3_ctx10"], progress=told.append)
    rates = ["prefill_20_tok_s", "decode_b1_ctx10_tok_s", "decode_b3_ctx10_tok_s"]
    assert list(record.figures) == [*rates, "load_s", "peak_rss_gib"]
    for name in rates:
        figure = record.figures[name]
        assert len(figure.samples) == 2 and min(figure.samples) > 0
        assert figure.floor is not None and figure.floor > 0
    assert told == ["loading", "prefill_20", "decode_b1_ctx10", "decode_b3_ctx10", "memory and matrix products"]
    assert record.dtype == str(tiny.model.embedding.weight.dtype).removeprefix("torch.")


def test_rates_count_the_tokens_between_two_looks_at_the_clock(tiny: Assistant) -> None:
    ticking = itertools.count(0.0, 2.0)  # two seconds pass from each look to the next
    record = measured(tiny, only=["prefill_20", "decode_b3_ctx10"], clock=lambda: next(ticking))
    assert record.figures["load_s"].samples == (2.0,)
    assert record.figures["prefill_20_tok_s"].samples == (10.0, 10.0)
    assert record.figures["decode_b3_ctx10_tok_s"].samples == (3 * measure.DECODE_STEPS / 2,) * 2


def test_decoding_leaves_nothing_behind(tiny: Assistant) -> None:
    engine = Engine(tiny.model)
    measure._decode(engine, [[1, 2, 3], [4, 5]], 0.0, itertools.count(0.0).__next__)
    assert engine.is_idle


def test_loading_alone_runs_no_case(tiny: Assistant) -> None:
    assert list(measured(tiny).figures) == ["load_s", "peak_rss_gib"]


def test_a_sampled_run_says_so(tiny: Assistant) -> None:
    assert measured(tiny, only=["decode_b1_ctx5"], temperature=0.6).to_json()["temperature"] == 0.6
