"""Shares are those of the ranks that really run: of serving by `parallel.Share`, of training by `train.spread`."""

import math
from dataclasses import replace

import pytest
import torch

from puna import parallel
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.plan.shares import Serving, Training, check_serving, check_training, served
from puna.presets import CRIA, MAVERICK, SCOUT

MIXED = replace(CRIA, text=replace(CRIA.text, n_heads=8, n_kv_heads=4, moe_layers=frozenset({1, 3, 5, 7})))
LAYOUTS = [Serving(), Serving(tensor=2), Serving(tensor=8), Serving(tensor=2, expert=2), Serving(pipeline=3, expert=4)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_serving_rank_holds_what_is_cut_for_it(layout: Serving) -> None:
    real = parallel.Layout(tensor=layout.tensor, expert=layout.expert, pipeline=layout.pipeline)
    with torch.device("meta"):
        whole = dict(Llama(MIXED).named_parameters())
    for rank in range(0, real.world, max(1, real.team - 1)):
        share = parallel.Share(MIXED, real, rank)
        held = {n: math.prod(share.cut(n, w.detach()).shape) for n, w in whole.items() if share.own_name(n) is not None}
        assert {w.name: w.size for w in served(MIXED, layout, rank // real.team)} == held


@pytest.mark.parametrize("config", [SCOUT, MAVERICK], ids=["scout", "maverick"])
def test_what_parallel_refuses_is_refused_and_nothing_else(config: LlamaConfig) -> None:
    for tensor in (1, 2, 5, 8, 16, 40):
        for expert in (1, 3, 4, 16):
            layout, real = Serving(tensor=tensor, expert=expert), parallel.Layout(tensor=tensor, expert=expert)
            assert refuses(lambda: check_serving(layout, config)) == refuses(lambda: real.check(config)), layout  # noqa: B023


def refuses(check: object) -> bool:
    try:
        check()  # type: ignore[operator]
    except ConfigError:
        return True
    return False


def test_a_training_layout_that_cannot_be_names_the_field() -> None:
    for layout, field in (
        (Training(tensor=3), "tensor"),
        (Training(expert=16), "expert"),
        (Training(context=7), "context"),
        (Training(pipeline=64), "pipeline"),
    ):
        with pytest.raises(ConfigError, match=f"^{field}: "):
            check_training(layout, SCOUT, row_len=8192)
