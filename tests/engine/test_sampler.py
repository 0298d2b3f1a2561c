from collections import Counter

import pytest
import torch
from torch import Tensor

from puna.engine.request import Sampling
from puna.engine.sampler import Choice, SamplerState, choose, shaped
from puna.errors import WeightsError


def pick(logits: Tensor, sampling: Sampling, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()) -> Choice:
    state = SamplerState(sampling, prompt)
    for token in output:
        state.record(token)
    return choose(logits[None], [state])[0]


def greedy(**changes: float) -> Sampling:
    return Sampling(temperature=0, **changes)  # type: ignore[arg-type]


def shaped_plain(logits: Tensor, s: Sampling) -> Tensor:
    """The order of the module docstring, token by token, in Python."""
    p = (logits.double() / s.temperature).softmax(0).tolist()
    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    ranked = [i for i in ranked if p[i] >= s.min_p * max(p)]
    ranked = ranked[: s.top_k or None]
    left, mass, kept = sum(p[i] for i in ranked), 0.0, []
    for i in ranked:
        if mass < s.top_p or s.top_p == 1:
            kept.append(i)
        mass += p[i] / left
    total = sum(p[i] for i in kept)
    return torch.tensor([p[i] / total if i in kept else 0.0 for i in range(len(p))], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    "changes", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"min_p": 0.05, "top_k": 9, "top_p": 0.8}]
)
def test_shaped_distribution_equals_its_definition(temperature: float, changes: dict[str, float]) -> None:
    samplings = [Sampling(temperature=temperature, **{"top_p": 1.0} | changes), Sampling(temperature=0.7)]  # type: ignore[arg-type]
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)) * 3
    expected = torch.stack([shaped_plain(row, s) for row, s in zip(logits, samplings, strict=True)])
    # Logits are float32, so probabilities carry its rounding.
    torch.testing.assert_close(shaped(logits, samplings), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("changes", [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9}])
def test_shaped_distribution_equals_that_of_transformers(changes: dict[str, float]) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(4)) * 3
    steps = [process.TemperatureLogitsWarper(0.7)]
    steps += [process.TopKLogitsWarper(changes["top_k"])] if "top_k" in changes else []
    steps += [process.TopPLogitsWarper(changes["top_p"])] if "top_p" in changes else []
    steps += [process.MinPLogitsWarper(changes["min_p"])] if "min_p" in changes else []
    expected = process.LogitsProcessorList(steps)(None, logits.clone()).softmax(-1).double()
    sampling = Sampling(temperature=0.7, **{"top_p": 1.0} | changes)  # type: ignore[arg-type]
    torch.testing.assert_close(shaped(logits, [sampling] * 3), expected, rtol=1e-5, atol=1e-7)


def test_repetition_penalty_equals_that_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ids = torch.randn(30, generator=torch.Generator().manual_seed(5)), [3, 9, 9, 20]
    expected = process.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), logits[None].clone())[0]
    SamplerState(Sampling(repetition_penalty=1.3), ids).penalise(logits)
    torch.testing.assert_close(logits, expected)


def test_drawn_tokens_follow_the_shaped_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=3)
    state = SamplerState(sampling, ())
    drawn = Counter(choose(logits[None], [state])[0].token for _ in range(4000))
    for token, p in enumerate(shaped(logits[None], [sampling])[0].tolist()):
        # Four standard deviations of a binomial count.
        assert abs(drawn[token] - 4000 * p) <= 4 * (4000 * p * (1 - p)) ** 0.5


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9])
    assert {pick(logits, Sampling(temperature=t, seed=s)).token for t in (0, 1e-9) for s in range(9)} == {1}


def test_a_small_temperature_does_not_overflow() -> None:
    assert pick(torch.tensor([9e4, 8e4, -9e4]), Sampling(temperature=1e-4, seed=1)).token == 0


def test_top_k_keeps_exactly_k_among_equal_logits() -> None:
    assert shaped(torch.zeros(1, 6), [Sampling(temperature=1, top_p=1, top_k=2)])[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_the_most_probable_token_survives_the_smallest_top_p() -> None:
    assert pick(torch.tensor([0.0, 5.0, 1.0]), Sampling(top_p=1e-9, seed=0)).token == 1


def test_repetition_penalty_lowers_tokens_of_prompt_and_output_on_both_sides_of_zero() -> None:
    logits = torch.tensor([3.0, 2.5, 2.0, -1.0])
    sampling = greedy(repetition_penalty=2.0)
    assert pick(logits, sampling, prompt=(0,)).token == 1
    assert pick(logits, sampling, prompt=(0,), output=(1, 1)).token == 2
    assert pick(torch.tensor([-1.0, -1.5]), sampling, prompt=(0,)).token == 1


def test_presence_counts_once_and_frequency_every_time_and_neither_the_prompt() -> None:
    logits = torch.tensor([2.0, 1.1, 0.0])
    assert pick(logits, greedy(presence_penalty=1.0), prompt=(0,)).token == 0
    assert pick(logits, greedy(presence_penalty=1.0), output=(0,)).token == 1
    assert pick(logits, greedy(presence_penalty=0.5), output=(0, 0, 0)).token == 0
    assert pick(logits, greedy(frequency_penalty=0.5), output=(0,)).token == 0
    assert pick(logits, greedy(frequency_penalty=0.5), output=(0, 0)).token == 1


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    logits = torch.tensor([[2.0, 1.5], [2.0, 1.5]])
    states = [SamplerState(greedy(repetition_penalty=3.0), (0,)), SamplerState(greedy(), (0,))]
    assert [choice.token for choice in choose(logits, states)] == [1, 0]
    assert logits.tolist() == [[2.0, 1.5], [2.0, 1.5]]


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(2))

    def tokens(neighbours: int) -> list[int]:
        state = SamplerState(Sampling(seed=11), ())
        others = [SamplerState(Sampling(temperature=1.3, seed=i, top_k=i), ()) for i in range(neighbours)]
        return [choose(torch.cat([row[None], logits[:neighbours]]), [state, *others])[0].token for row in logits]

    assert tokens(0) == tokens(1) == tokens(7)
    assert len(set(tokens(0))) > 5


def test_samples_of_one_seed_differ_and_each_can_be_had_alone() -> None:
    logits = torch.zeros(1, 1000)
    first, second = (choose(logits, [SamplerState(Sampling(seed=4, top_p=1.0), (), sample=i)])[0].token for i in (0, 1))
    assert first != second
    assert choose(logits, [SamplerState(Sampling(seed=5, top_p=1.0), ())])[0].token == second


def test_logprobs_are_those_of_the_untouched_distribution() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    choice = pick(logits, greedy(n_logprobs=2, repetition_penalty=9.0), prompt=(1,))
    expected = logits.log_softmax(0)
    assert choice.token == 2
    assert choice.logprobs is not None
    assert choice.logprobs.chosen == pytest.approx(float(expected[2]))
    assert [id_ for id_, _ in choice.logprobs.top] == [1, 2]
    assert choice.logprobs.top[0][1] == pytest.approx(float(expected[1]))


def test_each_row_gets_as_many_logprobs_as_it_asked_for() -> None:
    states = [SamplerState(greedy(n_logprobs=n), ()) for n in (None, 0, 3, 9)]  # type: ignore[arg-type]
    got = [choice.logprobs for choice in choose(torch.randn(4, 5), states)]
    assert got[0] is None
    assert [len(logprobs.top) for logprobs in got[1:] if logprobs is not None] == [0, 3, 5]


def test_a_forbidden_id_is_never_chosen() -> None:
    assert choose(torch.tensor([[0.0, 9.0, 1.0]]), [SamplerState(greedy(), ())], forbidden=(1,))[0].token == 2


def test_logits_that_are_not_finite_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(WeightsError, match="not finite"):
        pick(torch.tensor([0.0, float("nan")]), Sampling())
