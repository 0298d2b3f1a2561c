"""The kernels of a training step equal their plain twins, in values and gradients, whatever the sizes."""

import math

import pytest
import torch
from torch.nn import functional as F

from puna.kernels import training
from puna.kernels.experts import grouped_linear_plain, routed_experts

pytestmark = pytest.mark.skipif(not training.available(), reason="no kernels for this processor")

ROUNDING = 2**-7
"""One rounding step of bfloat16 at most."""


def swiglu_plain(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    gate, up = grouped_linear_plain(x, gate_up, ends).chunk(2, dim=-1)
    return grouped_linear_plain(F.silu(gate) * up, down, ends)


@pytest.mark.parametrize(
    ("counts", "width", "hidden"),
    [([0, 1, 70, 0, 17], 96, 32), ([64, 33], 32, 160), ([130, 2, 48], 64, 96), ([0, 1, 0], 32, 32), ([5], 160, 64)],
)
def test_experts_and_all_their_gradients_equal_sums_in_float64(counts: list[int], width: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(len(counts) + width)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    shapes = (sum(counts), width), (len(counts), 2 * hidden, width), (len(counts), width, hidden)
    leaves = [torch.randn(shape, generator=generator).bfloat16() / shape[-1] ** 0.5 for shape in shapes]
    upstream = torch.randn(shapes[0], generator=generator).bfloat16()
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    found = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = swiglu_plain(exact[0], exact[1], exact[2], ends)
    out, _ = training.swiglu(*found, ends)
    (expected * upstream.double()).sum().backward()  # type: ignore[no-untyped-call]
    (out * upstream).sum().backward()
    for one, other in ((out, expected), *((a.grad, b.grad) for a, b in zip(found, exact, strict=True))):
        assert one is not None and other is not None
        assert one.dtype == torch.bfloat16
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other, atol=scale * 2**-6, rtol=2**-6)


def stack_of(n_experts: int) -> list[torch.Tensor]:
    """gate_up and down of experts that read 64 numbers and mix 32."""
    return [torch.randn(n_experts, 64, 64).bfloat16(), torch.randn(n_experts, 64, 32).bfloat16()]


def test_a_row_of_an_expert_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(90, 64).bfloat16(), stack_of(1)
    together, _ = training.swiglu(x, *weights, torch.tensor([90], dtype=torch.int32))
    for row in (0, 63, 64, 89):
        alone, _ = training.swiglu(x[row : row + 1], *weights, torch.tensor([1], dtype=torch.int32))
        assert alone[0].equal(together[row])


def test_threads_make_no_difference_to_experts() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(200, 64).bfloat16(), stack_of(4)
    experts, scores = torch.randint(0, 4, (200, 1)), torch.rand(200, 1).bfloat16()
    results = []
    before = torch.get_num_threads()
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        leaves = [leaf.clone().requires_grad_() for leaf in (x, *weights)]
        routed_experts(leaves[0], scores, experts, leaves[1], leaves[2]).square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([leaf.grad for leaf in leaves])
    torch.set_num_threads(before)
    assert all(a is not None and b is not None and a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("row_len", "heads", "kv_heads", "width"), [(70, 4, 2, 16), (130, 2, 1, 64), (64, 2, 2, 80), (33, 1, 1, 128)]
)
def test_attention_over_rows_and_its_gradients_equal_sums_in_float64(
    row_len: int, heads: int, kv_heads: int, width: int
) -> None:
    torch.manual_seed(row_len)
    cuts = torch.tensor([0, 5, 40])  # where documents begin
    place = torch.arange(row_len)
    first = torch.stack([cuts[(place[:, None] >= cuts).sum(-1) - 1], place // 20 * 20])
    count = place + 1 - first
    keys = place >= first[..., None], place < (first + count)[..., None]
    bias = torch.zeros(2, 1, row_len, row_len, dtype=torch.float64).masked_fill(~(keys[0] & keys[1])[:, None], -1e30)
    leaves = [torch.randn(2 * row_len, n, width).bfloat16() for n in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(2 * row_len, heads, width).bfloat16()
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    found = [leaf.clone().requires_grad_() for leaf in leaves]
    q, k, v = (torch.unflatten(x, 0, (2, row_len)).transpose(1, 2) for x in exact)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    expected = ((q @ k.mT * width**-0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(0, 1)
    out, _ = training.rows_attention(*found, first.to(torch.int32), count.to(torch.int32))
    (expected * upstream.double()).sum().backward()
    (out * upstream).sum().backward()
    for one, other in ((out, expected), *((a.grad, b.grad) for a, b in zip(found, exact, strict=True))):
        assert one is not None and other is not None
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other, atol=scale * 2**-6, rtol=2**-6)


@pytest.mark.parametrize("n", [1, 15, 16, 33, 1000])
def test_cross_entropy_and_its_gradient_equal_those_of_torch(n: int) -> None:
    torch.manual_seed(n)
    logits = (torch.randn(6, n) * 8).bfloat16()
    targets, weights = torch.randint(0, n, (6,)), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1e-3])
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    losses = training.cross_entropy_(logits, targets, weights)
    torch.testing.assert_close(losses.double(), expected.detach(), atol=1e-5, rtol=1e-6)
    assert exact.grad is not None
    torch.testing.assert_close(logits.double(), exact.grad, atol=1e-6, rtol=ROUNDING)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_loss(strange: float) -> None:
    logits = torch.zeros(2, 40, dtype=torch.bfloat16)
    logits[0, 37] = strange
    losses = training.cross_entropy_(logits, torch.tensor([0, 1]), torch.ones(2))
    assert losses.isnan().tolist() == [True, False]
    assert logits[0].isnan().all() and not logits[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 70, 100_000])
def test_a_step_of_adamw_and_the_norm_equal_those_of_torch(dtype: torch.dtype, n: int) -> None:
    torch.manual_seed(n)
    master, gradient = torch.randn(n), torch.randn(n).to(dtype)
    first, second, rounded = torch.randn(n), torch.rand(n), torch.zeros(n, dtype=dtype)
    twin = torch.nn.Parameter(master.clone())
    optimizer = torch.optim.AdamW([twin], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer.state[twin] = {"step": torch.tensor(6.0), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    twin.grad = gradient.float() * 0.5
    optimizer.step()
    step = training.AdamWStep(0.5, 0.9, 0.95, 1e-8, 1 - 0.01 * 0.1, 0.01 / (1 - 0.9**7), (1 - 0.95**7) ** 0.5)
    training.adamw_(step, gradient, rounded, master, first, second)
    torch.testing.assert_close(master, twin.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first, optimizer.state[twin]["exp_avg"], atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(second, optimizer.state[twin]["exp_avg_sq"], atol=1e-7, rtol=1e-5)
    assert rounded.equal(master.to(dtype))
    torch.testing.assert_close(training.sum_of_squares(gradient), gradient.double().square().sum().float())
