"""The loss for models of which a part trains is that of pre-training, with the same gradients where anything trains."""

from pathlib import Path

import torch

from puna.train.next_token import NextToken
from puna.train.pack import Packer
from puna.train.recipe import LossRecipe
from puna.train.store import Store
from puna.train.supervised import Supervised
from puna.weights.checkpoint import load


def test_both_losses_and_their_gradients_agree(store: Store, tiny: Path) -> None:
    model = load(tiny, dtype=torch.float32).requires_grad_(True)
    packer = Packer(store, model.config, rows=2, row_len=120, tiles=16, window=16, seed=1, passes={})
    batch = next(packer.once())
    gradients = []
    for loss in (
        NextToken(model, balance=0.1, z=0.01, chunk=32),
        Supervised(model, LossRecipe(balance=0.1, z=0.01, chunk=32), recompute=True),
    ):
        found = loss(batch, loss.total(batch), 0.5)
        found.total.backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in model.named_parameters()} | {"loss": found.total.detach()})
        model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_a_frozen_head_gets_no_gradient_and_the_rest_the_same(store: Store, tiny: Path) -> None:
    model = load(tiny, dtype=torch.float32).requires_grad_(True)
    packer = Packer(store, model.config, rows=1, row_len=120, tiles=16, window=16, seed=1, passes={})
    batch = next(packer.once())
    gains = []
    for trains in (True, False):
        model.head.requires_grad_(trains)
        loss = Supervised(model, LossRecipe(balance=0.0, chunk=32), recompute=False)
        loss(batch, loss.total(batch)).total.backward()  # type: ignore[no-untyped-call]
        assert (model.head.weight.grad is not None) is trains
        gains.append(model.norm.weight.grad)
        model.zero_grad()
    torch.testing.assert_close(gains[0], gains[1])
