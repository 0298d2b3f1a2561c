"""Routing that did not move agrees wholly; where a router is turned round it does not."""

import json
from pathlib import Path

import torch

from puna.train.drift import DRIFT, Routing
from puna.train.pack import Packer
from puna.train.store import Store
from puna.weights.checkpoint import load


def test_agreement_falls_with_the_router_and_lines_are_written_once(store: Store, tiny: Path, tmp_path: Path) -> None:
    model = load(tiny, dtype=torch.float32)
    packer = Packer(store, model.config, rows=2, row_len=120, tiles=16, window=16, seed=1, passes={})
    routing = Routing(model, [next(packer.once())], tmp_path, "cpu")
    still = routing.note(3)
    assert still.agreement == 1.0 and 0 < still.entropy <= 1
    with torch.no_grad():
        model.get_parameter("layers.3.moe.router.weight").neg_()
    moved = routing.note(5)
    assert moved.agreements[0] == 1.0 and moved.agreements[1] < 0.5
    routing.note(5)
    assert [json.loads(line)["step"] for line in (tmp_path / DRIFT).read_text("utf-8").splitlines()] == [3, 5]
