import pytest
import torch

from puna.engine.bias import Bias
from puna.engine.request import Sampling
from puna.engine.sampler import SamplerState, choose
from puna.errors import PromptError

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
    for settings in ({"allowed_ids": []}, {"min_new_tokens": -1}, {"logit_bias": {1: float("nan")}}):
        with pytest.raises(PromptError):
            Sampling(**settings)  # type: ignore[arg-type]
