"""The coordinate check: toys keep the layers of their model, and what training moves is flat with the transfer."""

import math

import pytest

from puna.presets import PRESETS
from puna.train.coordinates import BASE_DEPTH, SIZES, Along, Coordinates, check, slope, text, to_json, toy
from puna.train.recipe import OptimizerRecipe

ADAMW = OptimizerRecipe(
    lr=0.01, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0, matrices="adamw"
)
MUON = OptimizerRecipe(lr=0.02, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0)

FLAT = 0.2
"""Largest slope of what counts as flat: a factor of 1.5 from the narrowest toy to one eight times as wide, where the
rates without transfer make 4 to 12 under AdamW. Toys differ by chance, and what chance leaves shrinks with width."""


def slopes(rows: list[Coordinates]) -> dict[str, float]:
    return {row.kind: row.moved_slope for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), [("scout", ADAMW), ("maverick", ADAMW), ("maverick", MUON)])
def test_what_training_moves_does_not_depend_on_the_width(name: str, optimizer: OptimizerRecipe) -> None:
    """The router is the exception: what it learns in these steps is less than chance, and that shrinks."""
    rows = check(PRESETS[name], optimizer, "width", depth_exponent=1.0)
    found = slopes(rows)
    assert -0.5 < found.pop("router") < 0.1
    assert all(abs(value) < FLAT for value in found.values()), found
    without = slopes(check(PRESETS[name], optimizer, "width", depth_exponent=None))
    grows = {"attention", "router", "stream", "logits"} if optimizer is ADAMW else {"attention", "router", "logits"}
    assert all(without[kind] > 0.25 for kind in grows), without
    assert without["attention"] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_what_training_moves_does_not_depend_on_the_depth(optimizer: OptimizerRecipe) -> None:
    """Each branch moves by its share of the stream, one over the depth."""
    found = slopes(check(PRESETS["scout"], optimizer, "depth", depth_exponent=1.0))
    for kind in ("stream", "logits", "router"):
        assert abs(found[kind]) < FLAT, found
    for kind in ("attention", "shared expert", "routed experts"):
        assert abs(found[kind] + 1) < FLAT, found
    without = slopes(check(PRESETS["scout"], optimizer, "depth", depth_exponent=None))
    assert without["stream"] > 0.25, without


def test_a_toy_keeps_the_kinds_of_layers_and_the_size_of_a_head() -> None:
    wide, deep = toy(PRESETS["maverick"], width=64).text, toy(PRESETS["maverick"], depth=8).text
    assert (wide.width, wide.n_heads, wide.n_kv_heads, wide.head_dim, wide.expert_width) == (64, 8, 4, 8, 104)
    assert deep.moe_layers == {1, 3, 5, 7} and deep.rope_layers == {0, 1, 2, 4, 5, 6} and wide.n_layers == BASE_DEPTH
    assert toy(PRESETS["guard4"]).text.moe_layers == frozenset()


def test_slopes_are_those_of_powers() -> None:
    assert slope((2, 4, 8), (3.0, 3.0, 3.0)) == pytest.approx(0.0)
    assert slope((2, 4, 8), (1.0, 0.5, 0.25)) == pytest.approx(-1.0)
    assert math.isnan(slope((2, 4), (1.0, float("inf"))))


def test_a_report_shows_each_kind_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    along: Along = "width"
    rows = check(PRESETS["scout"], ADAMW, along, depth_exponent=1.0, sizes=(32, 64), steps=1)
    found = {along: {"with": rows, "without": rows}}
    assert len(SIZES[along]) == 4 and {"attention", "router", "routed experts", "stream", "logits"} <= set(slopes(rows))
    assert text(found).count("width   64") == 2 and "router" in text(found)
    assert to_json(found)["width"]["with"][0]["kind"] == rows[0].kind
