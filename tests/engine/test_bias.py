import pytest
import torch

from puna.engine.bias import Bias
from puna.engine.request import Request, Sampling, check
from puna.engine.sampler import SamplerState, choose
from puna.errors import PromptError
from tests.reference.tiny import random_model, tiny_config

GREEDY = {"temperature": 0.0}


def state(**settings: object) -> SamplerState:
    return SamplerState(Sampling(**GREEDY | settings), [0])  # type: ignore[arg-type]


def test_a_bias_moves_logits_and_leaves_log_probabilities_alone() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, 0.0]]).repeat(3, 1)
    (plain,), (banned,), (wanted,) = (
        choose(logits[:1], [each])
        for each in (
            state(n_logprobs=0),
            state(logit_bias={1: -100.0}, n_logprobs=0),
            state(logit_bias={3: 2.5, 2: 1.0}, n_logprobs=0),
        )
    )
    assert (plain.token, banned.token, wanted.token) == (1, 0, 3)
    assert wanted.logprobs is not None
    assert wanted.logprobs.chosen == pytest.approx(logits[0].log_softmax(0)[3].item())


def test_only_allowed_ids_are_chosen_and_neighbours_are_left_alone() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]]).repeat(3, 1)
    drawn = SamplerState(Sampling(temperature=5.0, top_p=1.0, allowed_ids=[0, 3], seed=1), [0])
    for _ in range(20):
        choices = choose(logits, [state(), drawn, state(allowed_ids=[1])])
        assert choices[0].token == 2 and choices[1].token in (0, 3) and choices[2].token == 1


def test_stop_ids_are_barred_until_enough_is_written_drafts_included() -> None:
    sampling = Sampling(min_new_tokens=2, stop_ids=frozenset({1, 2}))
    bias, rows = Bias(sampling), torch.zeros(3, 4)
    bias.n_written = 1
    bias.apply(rows)
    assert rows[0].tolist() == [0.0, -torch.inf, -torch.inf, 0.0] and not rows[1:].any()
    ending = state(min_new_tokens=2, stop_ids=frozenset({1}))
    logits = torch.tensor([[1.0, 2.0]])
    assert [choose(logits, [ending])[0].token for _ in range(3)] == [0, 0, 1]


def test_settings_that_make_no_sense_are_refused() -> None:
    beyond = ({"temperature": 1e10}, {"repetition_penalty": 1e-5}, {"repetition_penalty": 1e5})  # of float32, in effect
    for settings in ({"allowed_ids": []}, {"min_new_tokens": -1}, {"logit_bias": {1: float("nan")}}, *beyond):
        with pytest.raises(PromptError):
            Sampling(**settings)  # type: ignore[arg-type]


def test_barred_ids_stay_barred_at_the_ends_of_all_ranges() -> None:
    logits = torch.tensor([[80.0, -80.0, 90.0, 5.0]])
    for temperature, penalty in ((1e9, 1e4), (1e9, 1e-4), (1e-5, 1e-4), (0.0, 1e-4)):
        for seed in range(8):
            sampling = Sampling(
                temperature=temperature, top_p=1.0, repetition_penalty=penalty, seed=seed, logit_bias={3: 100.0}
            )
            (choice,) = choose(logits, [SamplerState(sampling, [0, 1, 2])], forbidden=[2])
            assert choice.token != 2


def test_stop_ids_of_no_vocabulary_are_refused_before_they_are_barred() -> None:
    model = random_model(tiny_config())
    sampling = Sampling(stop_ids=frozenset({10**9}), min_new_tokens=2)
    with pytest.raises(PromptError, match="stop_ids holds 1000000000"):
        check(Request(ids=[1], sampling=sampling), model.config)
