import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.engine.drawing import shaped
from puna.engine.request import Sampling
from puna.engine.sampler import Choice, Sampler, SamplerState, choose
from puna.errors import WeightsError


def pick(logits: Tensor, sampling: Sampling, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()) -> Choice:
    state = SamplerState(sampling, prompt)
    for token in output:
        state.record(token)
    return choose(logits[None], [state])[0]


def greedy(**changes: float) -> Sampling:
    return Sampling(temperature=0, **changes)  # type: ignore[arg-type]


def test_drawn_tokens_follow_the_shaped_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    sampling = Sampling(temperature=0.8, top_p=0.95)
    states = [SamplerState(replace(sampling, seed=seed), ()) for seed in range(400)]
    sampler, rows = Sampler(), logits.expand(400, -1).contiguous()
    drawn = Counter(chosen[0].token for _ in range(10) for chosen in sampler.verify(rows, states, [()] * 400))
    for token, p in enumerate(shaped(logits[None], [sampling])[0].tolist()):
        # Four standard deviations of a binomial count.
        assert abs(drawn[token] - 4000 * p) <= 4 * (4000 * p * (1 - p)) ** 0.5


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9])
    assert {pick(logits, Sampling(temperature=t, seed=s)).token for t in (0, 1e-9) for s in range(9)} == {1}


def test_a_small_temperature_does_not_overflow() -> None:
    assert pick(torch.tensor([9e4, 8e4, -9e4]), Sampling(temperature=1e-4, seed=1)).token == 0


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


# Batches of many kinds of rows, and drafts -------------------------------------------------------------------------


def settings_of_many_kinds(seed: int) -> list[Sampling]:
    return [
        greedy(),
        Sampling(seed=seed),
        Sampling(seed=seed, temperature=1.3, top_p=1.0),
        greedy(repetition_penalty=1.4),
        Sampling(seed=seed + 1, top_k=5, frequency_penalty=0.7, n_logprobs=3),
        Sampling(seed=seed, min_p=0.1, top_p=1.0, presence_penalty=1.5, repetition_penalty=0.8),
        greedy(n_logprobs=0),
        Sampling(seed=seed, temperature=0.9, top_p=0.5, n_logprobs=1),
    ]


@pytest.mark.parametrize("width", [37, 5000])
def test_a_batch_gives_each_row_what_it_gets_alone(width: int) -> None:
    logits = torch.randn(12, 8, width, generator=torch.Generator().manual_seed(width)) * 2
    together, apart = ([SamplerState(s, (1, 2, 3)) for s in settings_of_many_kinds(4)] for _ in range(2))
    sampler = Sampler(forbidden=(5, width - 1))
    for step in logits:
        chosen = sampler.verify(step, together, [()] * 8)
        alone = [choose(row[None], [state], (5, width - 1)) for row, state in zip(step, apart, strict=True)]
        assert chosen == alone


def test_members_may_come_and_go_between_steps() -> None:
    logits = torch.randn(30, 8, 50, generator=torch.Generator().manual_seed(6)) * 2
    together, apart = ([SamplerState(s, (1, 2, 3)) for s in settings_of_many_kinds(9)] for _ in range(2))
    sampler, dice = Sampler(), torch.Generator().manual_seed(1)
    for step in logits:
        here = torch.randperm(8, generator=dice)[: int(torch.randint(1, 9, (1,), generator=dice))].tolist()
        chosen = sampler.verify(step[here], [together[i] for i in here], [()] * len(here))
        assert chosen == [choose(step[i][None], [apart[i]]) for i in here]


@pytest.mark.parametrize("width", [37, 5000])
def test_drafts_change_no_token_whatever_they_are(width: int) -> None:
    """Logits are a function of the last token and its place, so that a run without drafts can be told in full."""
    table = torch.randn(40, width, generator=torch.Generator().manual_seed(3)) * 3
    n_tokens = 16

    def row(position: int, last: int) -> Tensor:
        return table[(7 * position + last) % 40]

    dice = random.Random(5)
    for sampling in settings_of_many_kinds(2):
        plain, state = SamplerState(sampling, (1, 2)), SamplerState(sampling, (1, 2))
        expected: list[Choice] = []
        for position in range(n_tokens):
            expected += choose(row(position, expected[-1].token if expected else 0)[None], [plain])
        sampler, got, n_steps = Sampler(), list[Choice](), 0
        while len(got) < n_tokens:
            # Drafts are right for a while, then wrong, or wrong from the first.
            n = min(dice.randrange(6), n_tokens - len(got) - 1)
            draft = [choice.token for choice in expected[len(got) : len(got) + n]]
            draft = [token if dice.random() < 0.8 else dice.randrange(width) for token in draft]
            before = [got[-1].token if got else 0, *draft]
            logits = torch.stack([row(len(got) + i, last) for i, last in enumerate(before)])
            (accepted,) = sampler.verify(logits, [state], [draft])
            assert 1 <= len(accepted) <= 1 + len(draft)
            got += accepted
            n_steps += 1
        assert [c.token for c in got] == [c.token for c in expected]
        for one, other in zip(got, expected, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            assert one.logprobs == other.logprobs
        assert n_steps < n_tokens
        assert sampling.seed is None or state.uniforms(3) == plain.uniforms(3)


def test_drafts_of_several_sequences_are_checked_side_by_side() -> None:
    logits = torch.randn(9, 20, generator=torch.Generator().manual_seed(1))
    states = [
        SamplerState(greedy(), ()),
        SamplerState(greedy(repetition_penalty=2.0), (3,)),
        SamplerState(greedy(), ()),
    ]
    best = logits.argmax(-1).tolist()
    drafts = [best[:3], [], [best[5], (best[6] + 1) % 20, best[7]]]
    chosen = Sampler().verify(logits, states, drafts)
    assert [choice.token for choice in chosen[0]] == best[:4]
    assert len(chosen[1]) == 1
    assert [choice.token for choice in chosen[2]] == best[5:7]


@pytest.mark.parametrize("n_kept", [200, 3000, 5000])
def test_however_many_tokens_are_kept_they_are_drawn_by_their_definition(n_kept: int) -> None:
    """Few, more than the first and more than the second number of candidates."""
    logits = torch.full((4, 6000), -20.0)
    ids = torch.randperm(6000, generator=torch.Generator().manual_seed(n_kept))[:n_kept]
    logits[:, ids] = torch.rand(4, n_kept, generator=torch.Generator().manual_seed(2))
    samplings = [Sampling(seed=1, temperature=1.0, top_p=0.95), Sampling(seed=2, top_k=n_kept - 50), Sampling(seed=3)]
    samplings.append(Sampling(seed=4, temperature=1.0, top_p=1.0, min_p=0.4))
    states = [SamplerState(sampling, ()) for sampling in samplings]
    for _ in range(5):
        uniforms = torch.tensor([state.uniforms(1) for state in states], dtype=torch.float64)
        expected = torch.searchsorted(shaped(logits, samplings).cumsum(-1), uniforms, right=True)[:, 0]
        assert [choice.token for choice in choose(logits, states)] == expected.tolist()


def test_a_logit_of_minus_infinity_is_a_token_that_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    assert all(choose(logits, [SamplerState(Sampling(seed=i, top_p=1.0), ())])[0].token == 1 for i in range(5))


@pytest.mark.gpu
def test_on_a_gpu_the_choices_are_those_of_the_processor() -> None:
    logits = torch.randn(12, 8, 5000, generator=torch.Generator().manual_seed(8)) * 2
    here, there = ([SamplerState(s, (1, 2, 3)) for s in settings_of_many_kinds(4)] for _ in range(2))
    sampler, on_gpu = Sampler(forbidden=(5,)), Sampler(forbidden=(5,))
    for step in logits:
        chosen = sampler.verify(step, here, [()] * 8)
        same = on_gpu.verify(step.cuda(), there, [()] * 8)
        assert [c.token for (c,) in chosen] == [c.token for (c,) in same]
