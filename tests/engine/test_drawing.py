import pytest
import torch
from torch import Tensor

from puna.engine.drawing import Picked, Settings, candidates, draw_all, is_closed, pick, shaped
from puna.engine.request import Sampling


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


def test_top_k_keeps_exactly_k_among_equal_logits() -> None:
    assert shaped(torch.zeros(1, 6), [Sampling(temperature=1, top_p=1, top_k=2)])[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]


def drawn_from(logits: Tensor, samplings: list[Sampling], uniform: Tensor, k: int, all_closed: bool) -> Picked:
    settings = Settings.of(samplings)
    likely = candidates(logits, settings.device_temperature(logits.device), k, all_closed)
    values, share = (part.double().numpy() for part in (likely.logits, likely.share))
    return pick(values, likely.ids.numpy(), share, settings, uniform.numpy(), k >= logits.shape[1])


def inverted(logits: Tensor, samplings: list[Sampling], uniform: Tensor) -> list[int]:
    """The definition: where the cumulated distribution passes the number."""
    cumulated = shaped(logits, samplings).cumsum(-1)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0].tolist()


@pytest.mark.parametrize("width", [3, 64, 1000, 4096])
def test_drawing_from_all_tokens_inverts_the_distribution(width: int) -> None:
    dice = torch.Generator().manual_seed(width)
    logits = torch.randn(200, width, generator=dice) * 4
    samplings = [Sampling(temperature=0.2 + i / 100, top_p=1.0) for i in range(200)]
    uniform = torch.rand(200, 1, generator=dice, dtype=torch.float64)
    tokens = draw_all(logits, Settings.of(samplings).device_temperature(logits.device), uniform)
    assert tokens.tolist() == inverted(logits, samplings, uniform)


@pytest.mark.parametrize("width", [3, 64, 5000])
def test_drawing_from_some_tokens_inverts_the_distribution_where_it_is_sure(width: int) -> None:
    dice = torch.Generator().manual_seed(width)
    logits = torch.randn(200, width, generator=dice) * 4
    kinds = [{"top_p": 0.9}, {"top_k": 7}, {"min_p": 0.05, "top_p": 1.0}, {"top_k": 20, "top_p": 0.6, "min_p": 0.01}]
    samplings = [Sampling(temperature=0.3 + i / 200, **kinds[i % 4]) for i in range(200)]  # type: ignore[arg-type]
    uniform = torch.rand(200, 1, generator=dice, dtype=torch.float64)
    drawn = drawn_from(logits, samplings, uniform, 64, False)
    expected = inverted(logits, samplings, uniform)
    sure = drawn.is_sure.nonzero()[0].tolist()
    assert len(sure) > 100
    assert [drawn.tokens.tolist()[i] for i in sure] == [expected[i] for i in sure]


def test_rows_of_closed_settings_need_no_sum_over_the_vocabulary() -> None:
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(3)) * 4
    samplings = [Sampling(top_k=3 + i, min_p=0.001 * i) for i in range(40)]
    assert all(map(is_closed, samplings))
    uniform = torch.rand(40, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with_sum, without = (drawn_from(logits, samplings, uniform, 64, closed) for closed in (False, True))
    assert with_sum.tokens.tolist() == without.tokens.tolist()
    assert with_sum.is_sure.tolist() == without.is_sure.tolist()


def test_equals_at_the_border_of_the_candidates_are_not_sure() -> None:
    samplings = [Sampling(temperature=1.0, top_p=1.0, top_k=2)] * 2
    logits = torch.zeros(2, 1000)
    logits[1, 500:503] = torch.tensor([2.0, 3.0, 1.0])
    uniform = torch.full((2, 1), 0.9, dtype=torch.float64)
    assert drawn_from(logits, samplings, uniform, 8, True).is_sure.tolist() == [False, True]
    assert drawn_from(logits, samplings, uniform, 1000, True).tokens.tolist() == [1, 501]


def test_the_greatest_number_draws_the_last_token_that_has_mass() -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [3, 70, 130]] = 0.0
    uniform = torch.tensor([[1 - 2.0**-53]], dtype=torch.float64)
    for sampling in (Sampling(top_p=1.0), Sampling(top_k=50)):
        temperature = Settings.of([sampling]).device_temperature(logits.device)
        assert draw_all(logits, temperature, uniform).tolist() == [130]
        assert drawn_from(logits, [sampling], uniform, 200, False).tokens.tolist() == [130]
