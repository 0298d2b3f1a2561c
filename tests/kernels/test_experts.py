"""Grouped experts equal running each token through its own experts, in values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from puna.kernels.experts import group_by_expert, grouped_linear, grouped_linear_plain, routed_experts


def token_by_token(
    x: torch.Tensor, scores: torch.Tensor, experts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    rows = []
    for t in range(len(x)):
        out = torch.zeros_like(x[t])
        for score, expert in zip(scores[t], experts[t], strict=True):
            gate, up = (gate_up[expert] @ (score * x[t])).chunk(2)
            out = out + down[expert] @ (F.silu(gate) * up)
        rows.append(out)
    return torch.stack(rows)


def inputs(T: int, k: int, E: int, D: int = 6, F_: int = 10) -> list[torch.Tensor]:
    torch.manual_seed(T * 100 + k)
    x, gate_up, down = torch.randn(T, D), torch.randn(E, 2 * F_, D), torch.randn(E, D, F_)
    best, experts = torch.randn(T, E).topk(k, dim=-1)
    return [x, best.sigmoid(), experts, gate_up, down]


@pytest.mark.parametrize(
    ("T", "k", "E"), [(1, 1, 4), (9, 1, 3), (9, 2, 3), (5, 3, 8), (2, 1, 1), (130, 1, 2), (70, 2, 2)]
)
def test_routed_experts_equal_token_by_token(T: int, k: int, E: int) -> None:
    x, scores, experts, gate_up, down = inputs(T, k, E)
    expected = token_by_token(x, scores, experts, gate_up, down)
    torch.testing.assert_close(routed_experts(x, scores, experts, gate_up, down), expected, atol=1e-4, rtol=1e-5)


def test_gradients_reach_tokens_scores_and_chosen_experts_only() -> None:
    x, scores, experts, gate_up, down = inputs(7, 1, 4)
    experts = experts.clamp(max=2)  # nobody chooses the last expert
    leaves = [t.double().requires_grad_() for t in (x, scores, gate_up, down)]

    def run(x: torch.Tensor, s: torch.Tensor, g: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return routed_experts(x, s, experts, g, d)

    assert torch.autograd.gradcheck(run, leaves)
    run(*leaves).square().sum().backward()
    gate_up_gradient = leaves[2].grad
    assert (
        gate_up_gradient is not None and gate_up_gradient[:3].abs().sum() > 0 and gate_up_gradient[3].abs().sum() == 0
    )


def test_the_grouped_product_equals_its_plain_twin_in_bfloat16() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 16).bfloat16(), torch.randn(4, 24, 16).bfloat16()
    ends = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    fast, plain = grouped_linear(x, weight, ends), grouped_linear_plain(x, weight, ends)
    torch.testing.assert_close(fast, plain, atol=0.0, rtol=2**-7)  # one rounding step of bfloat16


def test_no_rows_at_all_give_an_empty_result() -> None:
    empty = grouped_linear(torch.empty(0, 6), torch.randn(2, 4, 6), torch.zeros(2, dtype=torch.int32))
    assert empty.shape == (0, 4)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_rows_of_an_expert_are_neighbours_in_their_order_and_begin_at_a_block(block: int) -> None:
    experts = torch.tensor([2, 0, 2, 2, 0, 3])
    slots = group_by_expert(experts, 4, block)
    starts = [0, *slots.ends.tolist()[:-1]]
    assert all(start % block == 0 for start in starts) and slots.ends[-1] == slots.n_slots
    for expert, members in ((0, [1, 4]), (2, [0, 2, 3]), (3, [5])):
        assert slots.slot[members].tolist() == [starts[expert] + i for i in range(len(members))]
