"""Tokens drawn on the device are those that the plain sampler draws, whatever the settings."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.engine.request import Sampling
from puna.engine.sampler import SamplerState, choose
from puna.kernels import triton_sample
from puna.kernels.triton_sample import Settings, draw, penalise


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sample, "PIECE", 64)  # so that a small vocabulary has several


def check(logits: torch.Tensor, rows: list[Sampling], device: torch.device) -> None:
    """Holds the tokens against those of the engine's sampler, which gets the same random numbers."""
    rows = [replace(settings, seed=i) for i, settings in enumerate(rows)]
    expected = [choice.token for choice in choose(logits, [SamplerState(settings, ()) for settings in rows])]
    uniforms = torch.tensor([random.Random(i).random() for i in range(len(rows))], dtype=torch.float64)
    drawn = draw(logits.to(device), Settings.of(rows, device), uniforms.to(device))
    assert drawn.tokens.tolist() == expected
    assert drawn.is_finite.all()


@pytest.mark.parametrize("V", [100, 64])
def test_tokens_equal_those_of_the_plain_sampler(V: int, device: torch.device) -> None:
    torch.manual_seed(V)
    settings = [(0.3, 7, 0.5, 0.0), (1.7, 0, 0.5, 0.05), (1.7, 7, 1.0, 0.0), (0.3, 0, 1.0, 0.05), (0.6, 1, 0.9, 0.0)]
    rows = [Sampling(temperature=t, top_k=k, top_p=p, min_p=m) for t, k, p, m in settings]
    check(torch.randn(6, V) * 3, [*rows, Sampling(temperature=0)], device)


def test_ties_are_kept_in_vocabulary_order(device: torch.device) -> None:
    torch.manual_seed(1)
    rows = [Sampling(temperature=1, top_k=5, top_p=p) for p in (1.0, 0.7, 0.2)]
    check(torch.randint(0, 3, (3, 90)).float(), rows, device)


@pytest.mark.slow
def test_tokens_equal_those_of_the_plain_sampler_for_all_settings_together(device: torch.device) -> None:
    torch.manual_seed(0)
    rows = [
        Sampling(temperature=t, top_k=k, top_p=p, min_p=m)
        for t, k, p, m in itertools.product((0.3, 1.7), (0, 1, 7), (0.5, 1.0), (0.0, 0.05))
    ]
    check(torch.randn(len(rows), 300) * 3, rows, device)


def test_forbidden_tokens_and_a_tiny_temperature(device: torch.device) -> None:
    torch.manual_seed(2)
    logits = torch.randn(2, 70) * 50
    logits[:, 5:60] = -torch.inf
    check(logits, [Sampling(temperature=1e-4), Sampling(top_k=9)], device)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_uniform_numbers_draw_the_first_and_the_last_token_kept(u: float, device: torch.device) -> None:
    logits = torch.zeros(1, 80, device=device)
    logits[:, :3] = -torch.inf
    uniforms = torch.tensor([u], dtype=torch.float64, device=device)
    rows = [Sampling(temperature=1, top_k=40, top_p=1)]
    assert draw(logits, Settings.of(rows, device), uniforms).tokens.tolist() == [3 if u == 0 else 42]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_reported(bad: float, device: torch.device) -> None:
    logits = torch.zeros(2, 40, device=device)
    logits[1, 7] = bad
    rows = [Sampling(), Sampling()]
    uniforms = torch.full((2,), 0.5, dtype=torch.float64, device=device)
    assert draw(logits, Settings.of(rows, device), uniforms).is_finite.tolist() == [True, False]


def test_penalties_equal_those_of_the_plain_sampler(device: torch.device) -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 50)
    rows = [
        Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=-0.25),
        Sampling(temperature=0, presence_penalty=-1, frequency_penalty=0.5),
    ]
    prompts, outputs = [[1, 2, 3, 3], [4, 5]], [[3, 9, 9, 9], [4]]
    ids, counts = torch.full((2, 7), -1, dtype=torch.int32), torch.zeros(2, 7)
    for r in range(2):
        for i, token in enumerate(sorted({*prompts[r], *outputs[r]})):
            ids[r, i], counts[r, i] = token, outputs[r].count(token)
    penalised = logits.to(device, copy=True)
    penalise(penalised, Settings.of(rows, device), ids.to(device), counts.to(device))
    for r in range(2):
        # A token is chosen until its penalised logit falls below a rival's: the rival finds the value.
        for token in {*prompts[r], *outputs[r]}:
            value = float(penalised[r, token])
            for rival, wins in ((value - 1e-4, token), (value + 1e-4, 0)):
                row = torch.full((1, 50), -100.0)
                row[0, token], row[0, 0] = logits[r, token], rival
                state = SamplerState(rows[r], prompts[r])
                for seen in outputs[r]:
                    state.record(seen)
                assert choose(row, [state])[0].token == wins


def test_no_rows_draw_nothing(device: torch.device) -> None:
    empty = torch.empty(0, 40, device=device)
    settings = Settings(*(torch.empty(0, device=device) for _ in range(7)))
    assert draw(empty, settings, empty[:, 0].double()).tokens.shape == (0,)
