"""Drift: none between equals, and what the definition says elsewhere."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from puna.errors import PromptError
from puna.quant.drift import drift, windows

FULL = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
SMALL = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 5.0]])


def full(ids: Sequence[int]) -> Tensor:
    return FULL[: len(ids)]


def small(ids: Sequence[int]) -> Tensor:
    return SMALL[: len(ids)]


def test_a_model_does_not_drift_from_itself() -> None:
    found = drift(full, full, [[0, 1, 2], [1, 1]])
    assert (found.n_tokens, found.divergence, found.divergence_error, found.agreement) == (3, 0.0, 0.0, 1.0)
    assert found.perplexity_full == found.perplexity_small


def test_drift_is_what_the_definition_says_and_the_last_row_counts_for_nothing() -> None:
    found = drift(full, small, [[0, 1, 2]])
    p, q = FULL[:2].double().softmax(-1), SMALL[:2].double().softmax(-1)
    rows = (p * (p / q).log()).sum(-1)
    assert found.n_tokens == 2
    assert found.divergence == pytest.approx(rows.mean().item())
    assert found.divergence_error == pytest.approx(rows.std().item() / math.sqrt(2))
    assert found.agreement == 0.5
    assert found.perplexity_full == pytest.approx(math.exp(-(p[0, 1].log() + p[1, 2].log()).item() / 2))
    assert found.perplexity_small == pytest.approx(math.exp(-(q[0, 1].log() + q[1, 2].log()).item() / 2))


def test_rows_taken_in_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    long = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    near = long + 0.1 * torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    ids = [i % 7 for i in range(40)]
    whole = drift(lambda _: long, lambda _: near, [ids])
    monkeypatch.setattr("puna.quant.drift._ROWS_AT_ONCE", 7)
    assert drift(lambda _: long, lambda _: near, [ids]) == pytest.approx(whole)


def test_windows_hold_every_id_once_behind_the_first() -> None:
    pieces = windows(list(range(100, 110)), 4, first=1)
    assert pieces == [[1, 100, 101, 102], [1, 103, 104, 105], [1, 106, 107, 108], [1, 109]]


def test_texts_without_a_second_token_are_refused() -> None:
    with pytest.raises(PromptError, match="none has two tokens"):
        drift(full, small, [[1], []])
