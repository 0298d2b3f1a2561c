"""Routing: who is chosen, what the score multiplies, and where gradients go."""

from dataclasses import replace

import torch

from puna.model.moe import MoE
from puna.presets import CRIA

TEXT = replace(CRIA.text, width=12, expert_width=8, n_experts=4)


def made(n_active: int = 1) -> MoE:
    torch.manual_seed(0)
    moe = MoE(replace(TEXT, n_active_experts=n_active))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def test_the_score_multiplies_the_experts_input_and_not_the_shared_one() -> None:
    moe, x = made(), torch.randn(5, 12)
    out, route = moe(x)
    for t in range(5):
        logits = moe.router(x[t])
        expert = int(logits.argmax())
        assert route.experts[t].tolist() == [expert]
        gate, up = (moe.experts.gate_up[expert] @ (logits[expert].sigmoid() * x[t])).chunk(2)
        routed = moe.experts.down[expert] @ (torch.nn.functional.silu(gate) * up)
        torch.testing.assert_close(out[t], moe.shared(x[t]) + routed, atol=1e-5, rtol=1e-5)


def test_the_router_learns_through_the_score_of_the_chosen_expert() -> None:
    moe, x = made(), torch.randn(3, 12)
    out, route = moe(x)
    out.square().sum().backward()
    gradient = moe.router.weight.grad
    assert gradient is not None
    chosen = set(route.experts.flatten().tolist())
    assert {e for e in range(4) if gradient[e].abs().sum() > 0} == chosen


def test_several_active_experts_add_up_without_renormalisation() -> None:
    moe, x = made(n_active=4), torch.randn(2, 12)
    out, route = moe(x)
    assert route.experts.shape == (2, 4) and sorted(route.experts[0].tolist()) == [0, 1, 2, 3]
    assert torch.isfinite(out).all()
