"""Experts in Triton equal their plain twins: few rows, many, empty experts, every format, sizes that fit no tile."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.kernels import experts as plain
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize
from puna.kernels.quantized import routed_experts_plain
from puna.kernels.triton_experts import by_expert, grouped_linear, routed_experts, swiglu
from tests.kernels.small_numbers import small


def routing(T: int, k: int, E: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    best, experts = torch.randn(T, E, device=device).topk(k, dim=-1)
    return best.sigmoid(), experts


@pytest.mark.parametrize(("T", "k", "E"), [(1, 1, 4), (3, 2, 5), (11, 1, 3), (70, 2, 3), (9, 1, 1)])
def test_plain_weights_equal_the_plain_path(T: int, k: int, E: int, device: torch.device) -> None:
    torch.manual_seed(T)
    x, (scores, experts) = torch.randn(T, 20, device=device), routing(T, k, E, device)
    gate_up, down = torch.randn(E, 2 * 13, 20, device=device), torch.randn(E, 20, 13, device=device)
    expected = plain.routed_experts(x, scores, experts, gate_up, down)
    torch.testing.assert_close(routed_experts(x, scores, experts, gate_up, down), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [Int4, Int8, Fp8])
@pytest.mark.parametrize("T", [2, 12])
def test_small_numbers_equal_writing_them_out(kind: type[Small], T: int, device: torch.device) -> None:
    torch.manual_seed(T)
    E, D, F = 4, 32, 64
    x, (scores, experts) = torch.randn(T, D, device=device) / 4, routing(T, 1, E, device)
    gate_up = small(kind, 2 * F, D, (E,), device=device)
    down = small(kind, D, F, (E,), device=device)
    expected = routed_experts_plain(x, scores, experts, gate_up, down)
    # Sums of D, then F numbers in another order: relative to the largest, since terms cancel.
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(routed_experts(x, scores, experts, gate_up, down), expected, atol=bound, rtol=1e-4)


@pytest.mark.parametrize("T", [2, 20])
def test_bfloat16_is_as_near_as_its_roundings(T: int, device: torch.device) -> None:
    torch.manual_seed(T)
    x, (scores, experts) = torch.randn(T, 24, device=device), routing(T, 1, 3, device)
    gate_up, down = torch.randn(3, 2 * 40, 24, device=device) / 5, torch.randn(3, 24, 40, device=device) / 6
    narrow = [each.bfloat16() for each in (x, scores, gate_up, down)]
    result = routed_experts(narrow[0], narrow[1], experts, *narrow[2:])
    wide = [each.float() for each in narrow]
    exact = plain.routed_experts(wide[0], wide[1], experts, *wide[2:])
    # Six roundings on the way (x * score, gate, up, silu, their product, the sum), each up to 2**-7 in the interpreter,
    # which truncates.
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, atol=6 * 2**-7 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("ends", [[0, 7, 7, 20], [20, 20, 20, 20], [0, 0, 0, 20], [1, 18, 19, 20]])
def test_grouped_product_finds_each_rows_group_also_beside_empty_ones(ends: list[int], device: torch.device) -> None:
    torch.manual_seed(1)
    x, borders = torch.randn(20, 32, device=device), torch.tensor(ends, dtype=torch.int32, device=device)
    for weight in (torch.randn(4, 9, 32, device=device), small(Int4, 9, 32, (4,), device=device)):
        expected = plain.grouped_linear_plain(x, dequantize(weight, torch.float32), borders)
        torch.testing.assert_close(grouped_linear(x, weight, borders), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("T", [0, 1, 5])
def test_a_shared_expert_is_one_that_everybody_chose(T: int, device: torch.device) -> None:
    torch.manual_seed(T)
    x = torch.randn(T, 32, device=device)
    for weight in (torch.randn(2 * 9, 32, device=device), small(Int4, 2 * 9, 32, device=device)):
        gate, up = (x @ dequantize(weight, torch.float32).T).chunk(2, dim=1)
        expected = torch.nn.functional.silu(gate) * up
        torch.testing.assert_close(swiglu(x, weight), expected, atol=1e-4, rtol=1e-5)


def test_rows_are_ordered_by_expert_and_keep_their_order_within() -> None:
    order, ends = by_expert(torch.tensor([2, 0, 2, 2, 0, 3]), 5)
    assert order.tolist() == [1, 4, 0, 2, 3, 5]
    assert ends.tolist() == [2, 2, 5, 6, 6] and ends.dtype == torch.int32


def test_unchosen_experts_are_not_read(device: torch.device) -> None:
    gate_up, down = torch.randn(3, 8, 16, device=device), torch.randn(3, 16, 4, device=device)
    gate_up[1], down[1] = torch.nan, torch.nan
    for T in (2, 40):
        experts = torch.tensor([[0], [2]], device=device).repeat(T // 2, 1)
        x = torch.randn(T, 16, device=device)
        assert routed_experts(x, torch.ones(T, 1, device=device), experts, gate_up, down).isfinite().all()
