"""What serving takes: the engine's own bytes, contexts that just fit, floors that nothing can beat."""

from dataclasses import replace

import pytest
import torch

from puna.engine import cache
from puna.engine.blocks import Layout
from puna.plan import search
from puna.plan.cluster import parse
from puna.plan.serve import Asked, serve
from puna.plan.shares import Serving
from puna.presets import CRIA, MAVERICK, SCOUT

H100 = parse("h100")


def test_keys_and_values_are_those_of_the_engine() -> None:
    asked = Asked(context=4000, batch=3)
    (rank,) = serve(CRIA, H100, Serving(), asked).ranks
    layout = Layout.of(CRIA.text)
    assert rank.kv == 3 * cache.pool_bytes(CRIA.text, layout.peak(4000), torch.bfloat16)


def test_the_longest_context_fits_and_one_block_more_does_not() -> None:
    asked = Asked(context=1, batch=2, scheme="int4")
    longest = serve(SCOUT, H100, Serving(), asked).longest_context
    assert 0 < longest < SCOUT.text.context_len
    small = replace(asked, context=longest)
    # the step's room grows with the context until it is a whole step's
    assert serve(SCOUT, H100, Serving(), small).fullest.total <= H100.hardware.memory_bytes + 3e8
    assert not serve(SCOUT, H100, Serving(), replace(asked, context=longest + 3 * 8192)).fits


def test_scout_in_int4_fits_one_gpu_of_eighty_gigabytes_and_in_bfloat16_it_does_not() -> None:
    assert search.serve(SCOUT, H100, Asked(context=8192, batch=1, scheme="int4")).fits
    found = search.serve(SCOUT, H100, Asked(context=8192, batch=1))
    assert not found.fits and "needs" in found.refused[0].reason


def test_maverick_in_fp8_fits_one_host_of_eight() -> None:
    assert search.serve(MAVERICK, parse("h100:8"), Asked(context=8192, batch=1, scheme="fp8-experts")).fits


def test_the_best_layout_is_the_fastest_that_fits() -> None:
    found = search.serve(SCOUT, parse("h100:8"), Asked(context=8192, batch=8))
    assert found.fits and found.best.layout.world == 8
    assert all(found.best.decode.tokens >= each.decode.tokens * 0.999 for each in found.others)


def test_more_sequences_never_make_a_floor_lower_nor_an_estimate_reach_it() -> None:
    before = 0.0
    for batch in (1, 2, 8, 64):
        phase = serve(SCOUT, parse("h200:8"), Serving(tensor=8), Asked(context=8192, batch=batch)).decode
        assert before < phase.floor_tokens and phase.tokens < phase.floor_tokens
        before = phase.floor_tokens


@pytest.mark.parametrize("layout", [Serving(tensor=8), Serving(tensor=2, expert=4), Serving(pipeline=4, tensor=2)])
def test_ranks_of_a_layout_hold_the_whole_model_between_them(layout: Serving) -> None:
    asked = Asked(context=8192, batch=1)
    whole = sum(serve(SCOUT, H100, Serving(), asked).fullest.weights.values())
    held = sum(layout.team * sum(rank.weights.values()) for rank in serve(SCOUT, parse("h100:8"), layout, asked).ranks)
    assert whole <= held < whole * 1.2  # tower, router and norms are everywhere
