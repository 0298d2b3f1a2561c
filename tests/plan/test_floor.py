"""What a step must read, worked out by hand."""

import pytest

from puna.plan.floor import experts_hit, keys_read, weights_read
from puna.presets import SCOUT
from tests.bench.test_work import measured_model


def test_more_tokens_hit_more_experts() -> None:
    text = measured_model().text
    assert experts_hit(text, 1) == pytest.approx(1)
    assert experts_hit(text, 8) == pytest.approx(6.5, abs=0.05)
    assert experts_hit(text, 16) == pytest.approx(10.3, abs=0.05)


def test_keys_and_values_of_a_context_weigh_what_was_counted_by_hand() -> None:
    assert keys_read(measured_model().text, 2048, element_bytes=2) / 1e6 == pytest.approx(50, abs=0.5)


def test_chunked_layers_read_no_more_than_their_chunk() -> None:
    text = measured_model().text
    one_token = 2 * 4 * 128 * 2
    assert keys_read(text, 3 * 8192 + 99, element_bytes=2) == one_token * (3 * (3 * 8192 + 99) + 9 * 100)


def test_where_ranks_share_out_experts_one_of_them_has_the_chosen_one() -> None:
    alone, shared = ({"attention": 100, "routed_experts": 1600 // groups} for groups in (1, 4))
    assert weights_read(SCOUT.text, alone, 1) == weights_read(SCOUT.text, shared, 1, groups=4) == 200
    assert weights_read(SCOUT.text, alone, 10**6) == 1700 and weights_read(SCOUT.text, shared, 10**6, groups=4) == 500
