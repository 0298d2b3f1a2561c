"""A fast runner is used where it is right, and only there."""

import pytest
import torch
from torch import Tensor

from puna.engine.batch import Batch
from puna.engine.blocks import Counts
from puna.engine.cache import KVCache
from puna.engine.runner import Runner, TorchRunner
from puna.engine.trial import proven
from tests.reference.tiny import random_model, tiny_config


class Off:
    """A runner whose logits are those of another, moved by so much."""

    def __init__(self, runner: Runner, by: float) -> None:
        self.runner, self.by = runner, by

    def run(self, batch: Batch) -> Tensor:
        logits = self.runner.run(batch)
        return logits + self.by * torch.arange(logits.shape[-1]) / logits.shape[-1]


@pytest.fixture
def cache() -> KVCache:
    return KVCache(tiny_config().text, Counts(4, 4), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def plain(cache: KVCache) -> TorchRunner:
    return TorchRunner(random_model(tiny_config()), cache)


def test_a_runner_that_agrees_is_taken(cache: KVCache, plain: TorchRunner) -> None:
    fast = Off(plain, 0.01)
    assert proven(lambda: fast, plain, cache, 64) is fast


@pytest.mark.parametrize("by", [1.0, torch.nan, torch.inf])
def test_a_runner_that_is_off_is_declined_aloud(cache: KVCache, plain: TorchRunner, by: float) -> None:
    with pytest.warns(RuntimeWarning, match="off by"):
        assert proven(lambda: Off(plain, by), plain, cache, 64) is plain


def test_a_runner_that_fails_is_declined_with_its_reason(cache: KVCache, plain: TorchRunner) -> None:
    def fails() -> Runner:
        raise OSError("no compiler")

    with pytest.warns(RuntimeWarning, match="OSError: no compiler"):
        assert proven(fails, plain, cache, 64) is plain
