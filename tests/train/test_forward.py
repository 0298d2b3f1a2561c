"""A forward that computes layers and logits again on the way back is the plain one, to the bit or to rounding."""

from pathlib import Path

import torch

from puna.train.forward import hidden, log_probs
from puna.train.pack import Packer
from puna.train.store import Store
from puna.weights.checkpoint import load


def test_computing_again_changes_no_gradient(store: Store, tiny: Path) -> None:
    gradients = []
    for recompute in (False, True):
        model = load(tiny, dtype=torch.float32).requires_grad_(True)
        packer = Packer(store, model.config, rows=2, row_len=120, tiles=16, window=16, seed=1, passes={})
        batch = next(packer.once())
        states = hidden(model, batch, recompute=recompute).states
        log_probs(model, states, batch.targets.flatten(), chunk=50).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None and gradient.equal(other), name


def test_log_probabilities_are_those_of_whole_logits(store: Store, tiny: Path) -> None:
    model = load(tiny, dtype=torch.float32)
    packer = Packer(store, model.config, rows=1, row_len=120, tiles=16, window=16, seed=1, passes={})
    batch = next(packer.once())
    states, targets = hidden(model, batch).states, batch.targets.flatten()
    whole = model.logits(states).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs(model, states, targets, chunk=7), whole)
    assert log_probs(model, states[:0], targets[:0], chunk=7).shape == (0,)
