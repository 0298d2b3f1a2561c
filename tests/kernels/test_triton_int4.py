"""Products with small numbers equal writing the numbers out and multiplying, at sizes that fit no tile."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.kernels import triton_int4
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize
from puna.kernels.quantized import linear_plain
from tests.kernels.small_numbers import small

FORMATS = [Int4, Int8, Fp8]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("T", "n_out", "n_in"), [(1, 21, 96), (1, 8, 544), (3, 20, 96), (17, 70, 160)])
def test_linear_equals_its_plain_twin(kind: type[Small], T: int, n_out: int, n_in: int, device: torch.device) -> None:
    torch.manual_seed(T + n_out)
    x, weight = torch.randn(T, n_in, device=device), small(kind, n_out, n_in, device=device)
    torch.testing.assert_close(triton_int4.linear(x, weight), linear_plain(x, weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("T", [1, 5])
def test_linear_in_bfloat16_is_as_near_as_its_rounding(T: int, device: torch.device) -> None:
    torch.manual_seed(T)
    x, weight = torch.randn(T, 64, device=device).bfloat16(), small(Int4, 24, 64, device=device)
    exact = x.float() @ dequantize(weight, torch.float32).T
    result = triton_int4.linear(x, weight)
    assert result.dtype == torch.bfloat16
    # The result is rounded once and, through matrix units, each weight too; the interpreter rounds towards zero.
    torch.testing.assert_close(result.float(), exact, atol=2**-7 * float(exact.abs().max()), rtol=0)


def test_no_rows_give_an_empty_result(device: torch.device) -> None:
    empty = torch.empty(0, 32, device=device)
    assert triton_int4.linear(empty, small(Int4, 5, 32, device=device)).shape == (0, 5)


def test_many_rows_write_the_weight_out_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_int4, "MANY_ROWS", 4)
    x, weight = torch.randn(4, 64, device=device), small(Int4, 10, 64, device=device)
    torch.testing.assert_close(triton_int4.linear(x, weight), linear_plain(x, weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_int4_is_written_out_exactly(leading: tuple[int, ...], device: torch.device) -> None:
    weight = small(Int4, 7, 96, leading, device=device)
    assert torch.equal(triton_int4.written_out(weight, torch.float32), dequantize(weight, torch.float32))


def test_scales_of_either_sign_and_both_ends_of_the_range_survive(device: torch.device) -> None:
    codes = torch.tensor([[0xF0] * 16], dtype=torch.uint8, device=device)  # -8 in even columns, 7 in odd ones
    weight = Int4(codes, torch.tensor([[-0.5]], dtype=torch.bfloat16, device=device))
    even, odd = torch.eye(32, device=device)[:2]
    assert triton_int4.linear(even[None], weight).item() == 4.0
    assert triton_int4.linear(odd[None], weight).item() == -3.5


def test_columns_that_are_no_whole_groups_are_refused(device: torch.device) -> None:
    weight = Int4(
        torch.zeros(4, 20, dtype=torch.uint8, device=device), torch.ones(4, 1, dtype=torch.bfloat16, device=device)
    )
    with pytest.raises(ValueError, match="40 columns"):
        triton_int4.linear(torch.ones(1, 40, device=device), weight)
