"""Every way of attending equals softmax(q k^T / sqrt(H)) v written out."""

import pytest
import torch

from puna.kernels.attention import attend_causal, attend_rows


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """q [T N H], k and v [S K H], visible [T S] -> [T N H], in float64."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1).double(), v.repeat_interleave(groups, 1).double()
    weights = torch.einsum("tnh,snh->nts", q.double(), k) * q.shape[-1] ** -0.5
    return torch.einsum("nts,snh->tnh", weights.masked_fill(~visible, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (5, 5), (4, 11)])
@pytest.mark.parametrize(("N", "K"), [(4, 4), (6, 2), (5, 1)])
def test_causal_attention_equals_the_formula(T: int, S: int, N: int, K: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(T, N, 10), torch.randn(S, K, 10), torch.randn(S, K, 10)
    visible = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    torch.testing.assert_close(attend_causal(q, k, v).double(), plain(q, k, v, visible), atol=2e-6, rtol=2e-6)


def test_rows_attention_equals_the_formula_row_by_row() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 6, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    visible = (torch.rand(2, 1, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool)
    mixed = attend_rows(q, k, v, visible)
    for row in range(2):
        expected = plain(q[row], k[row], v[row], visible[row, 0])
        torch.testing.assert_close(mixed[row].double(), expected, atol=2e-6, rtol=2e-6)
