"""Every way of attending equals softmax(q k^T / sqrt(H)) v written out."""

import pytest
import torch

from puna.kernels.attention import (
    Stored,
    attend_causal,
    attend_paged,
    attend_rows,
    head_rows,
    shrink,
    write_paged,
)


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
    attended = attend_causal(q, k.transpose(0, 1), v.transpose(0, 1))
    torch.testing.assert_close(attended.double(), plain(q, k, v, visible), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "S"), [(1, 300), (40, 300), (300, 300)])
def test_causal_attention_in_sixteen_bits_stays_near_the_formula(T: int, S: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, heads, 16).to(dtype) for n, heads in ((T, 6), (S, 2), (S, 2)))
    visible = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    attended = attend_causal(q, k.transpose(0, 1), v.transpose(0, 1))
    assert attended.dtype == dtype
    # Weights are rounded to 8 bits of mantissa before they meet the values, which are below 4.
    torch.testing.assert_close(attended.double(), plain(q, k, v, visible), atol=0.02, rtol=0.02)


def test_rows_attention_equals_the_formula_row_by_row() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 6, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    visible = (torch.rand(2, 1, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool)
    mixed = attend_rows(q, k, v, visible)
    for row in range(2):
        expected = plain(q[row], k[row], v[row], visible[row, 0])
        torch.testing.assert_close(mixed[row].double(), expected, atol=2e-6, rtol=2e-6)


def blocks_of(dtype: torch.dtype, n_blocks: int, K: int, block_len: int, H: int) -> Stored:
    """Returns blocks full of what nobody may look at."""
    codes = [torch.full((n_blocks, K, block_len, H), 77.0).to(dtype) for _ in range(2)]
    scales = [torch.full((n_blocks, K, block_len), 1e6) if dtype.itemsize == 1 else None for _ in range(2)]
    return Stored(codes[0], codes[1], scales[0], scales[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (5, 5), (4, 11), (3, 12)])
def test_paged_attention_equals_the_formula_over_what_is_stored(T: int, S: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(T, 6, 8), torch.randn(S, 2, 8), torch.randn(S, 2, 8)
    stored, table = blocks_of(dtype, 9, 2, 4, 8), torch.tensor([7, 0, 5])
    for first in range(0, S, 2):  # written in pieces, like a text that is read in pieces
        positions = torch.arange(first, min(first + 2, S))
        write_paged(stored, table[positions // 4], positions % 4, k[positions], v[positions])
    attended = attend_paged(q, stored, head_rows(table[: -(-S // 4)], 2), S)
    if dtype.itemsize == 1:
        k, v = (codes.float() * scale[..., None] for codes, scale in (shrink(k, dtype), shrink(v, dtype)))
    visible = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    torch.testing.assert_close(attended.double(), plain(q, k, v, visible), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.int8, 0.5 / 127), (torch.float8_e4m3fn, 2**-4)])
def test_eight_bits_are_off_by_no_more_than_half_a_step(dtype: torch.dtype, bound: float) -> None:
    x = torch.randn(50, 3, 16, generator=torch.Generator().manual_seed(0)) * 10
    x[0] = 0
    codes, scales = shrink(x, dtype)
    error = (codes.float() * scales[..., None] - x).abs()
    # int8 steps are equal, so the error is a share of the row's peak; e4m3 keeps 3 bits behind each number's first.
    reference = x.abs().amax(-1, keepdim=True) if dtype == torch.int8 else x.abs()
    smallest = scales[..., None] * 2**-10  # half the step of e4m3's subnormal numbers
    assert (error <= reference * bound * (1 + 1e-5) + smallest).all()
