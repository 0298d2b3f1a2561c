import pytest
import torch

from puna.kernels.ranking import greatest, greatest_k, greatest_k_plain, greatest_plain


@pytest.mark.parametrize("width", [1, 5, 64, 100, 4096])
def test_the_greatest_equals_its_plain_twin(width: int) -> None:
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    for fast, plain in zip(greatest(x), greatest_plain(x), strict=True):
        assert torch.equal(fast, plain)


def test_the_lowest_of_equal_entries_is_the_greatest() -> None:
    x = torch.zeros(2, 130)
    x[1, 70] = x[1, 129] = 1.0
    assert greatest(x)[1].tolist() == greatest_plain(x)[1].tolist() == [0, 70]


@pytest.mark.parametrize("width", [5, 64, 100, 4096])
def test_what_is_barred_is_not_named_but_still_counts_as_the_greatest(width: int) -> None:
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    bar = torch.zeros(width).index_fill_(0, torch.cat([x.argmax(dim=1)[:3], torch.tensor([2])]), -torch.inf)
    for fast, plain in zip(greatest(x, bar), greatest_plain(x, bar), strict=True):
        assert torch.equal(fast, plain)
    assert torch.equal(greatest(x, bar)[0], x.amax(dim=1))
    assert not bar[greatest(x, bar)[1]].isinf().any()


def test_rows_that_do_not_lie_together_are_found_too() -> None:
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(0)).T
    for fast, plain in zip(greatest(x), greatest_plain(x), strict=True):
        assert torch.equal(fast, plain)


def test_not_a_number_counts_as_the_greatest() -> None:
    x = torch.tensor([[1.0, torch.nan, torch.inf], [3.0, 2.0, -torch.inf]])
    for find in (greatest, greatest_plain):
        values, ids = find(x)
        assert ids.tolist() == [1, 0]
        assert not torch.isfinite(values).all()


@pytest.mark.parametrize(("width", "k"), [(4096, 3), (4096, 32), (2080, 20), (101, 7), (64, 64), (6000, 1)])
def test_the_k_greatest_equal_their_plain_twin(width: int, k: int) -> None:
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(k))
    fast, plain = greatest_k(x, k), greatest_k_plain(x, k)
    assert torch.equal(fast.values, plain.values)
    assert torch.equal(fast.ids, plain.ids)


def test_the_k_greatest_of_many_equal_entries_have_their_values() -> None:
    x = torch.randint(0, 4, (6, 4096), generator=torch.Generator().manual_seed(1)).float()
    fast = greatest_k(x, 16)
    assert torch.equal(fast.values, greatest_k_plain(x, 16).values)
    assert torch.equal(x.gather(1, fast.ids), fast.values)
    assert all(len(set(row)) == 16 for row in fast.ids.tolist())
