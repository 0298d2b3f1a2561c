from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from puna.kernels import native
from puna.kernels.experts import Slots
from puna.kernels.experts import routed_experts as plain_experts
from puna.kernels.low_rank import Correct, Groups, as_it_is, correct, grouped, linear, routed_experts

T, D, F, E, R = 6, 8, 5, 3, 2


class Layer(NamedTuple):
    """Routed experts with corrections of all of them, float64."""

    x: Tensor
    scores: Tensor
    gate_up: Tensor
    down: Tensor
    factors: tuple[Tensor, Tensor, Tensor, Tensor]  # a and b of gate_up, a and b of down


@pytest.fixture
def layer() -> Layer:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    factors = (random(E, R, D), random(E, 2 * F, R), random(E, R, F), random(E, D, R))
    return Layer(random(T, D), random(T, 2), random(E, 2 * F, D), random(E, D, F), factors)


EXPERTS = torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0], [0, 2], [2, 0]])  # nobody chose expert 1


def of_all(a: Tensor, b: Tensor) -> Correct:
    def corrected(x: Tensor, y: Tensor, slots: Slots) -> Tensor:
        return correct(x, y, a, b, Groups(None, slots.ends), scale=0.5)

    return corrected


def test_each_row_gets_the_correction_of_its_group_and_rows_of_none_get_none() -> None:
    x, y, a, b = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 2, 4), torch.randn(3, 3, 2)
    keys = torch.tensor([2, -1, 0, 2, -1])
    got = correct(x, y, a, b, grouped(keys, 3), scale=2.0)
    for i, key in enumerate(keys.tolist()):
        wanted = y[i] if key < 0 else y[i] + 2.0 * b[key] @ a[key] @ x[i]
        torch.testing.assert_close(got[i], wanted)


def test_rows_that_lie_by_group_already_stay_where_they_are() -> None:
    assert grouped(torch.tensor([0, 0, 2]), 3).rows is None
    for keys in ([0, 2, 0], [-1, 0, 0], [2, 2, -1]):
        assert grouped(torch.tensor(keys), 3).rows is not None


def test_a_batch_in_which_nobody_has_a_correction_stays_as_it_is() -> None:
    y = torch.randn(2, 3)
    none = grouped(torch.tensor([-1, -1]), 3)
    assert torch.equal(correct(torch.randn(2, 4), y, torch.randn(3, 2, 4), torch.randn(3, 3, 2), none), y)


def test_corrected_experts_are_experts_whose_weights_hold_the_correction(layer: Layer) -> None:
    a_up, b_up, a_down, b_down = layer.factors
    got = routed_experts(
        layer.x, layer.scores, EXPERTS, layer.gate_up, layer.down, of_all(a_up, b_up), of_all(a_down, b_down)
    )
    merged = layer.gate_up + 0.5 * b_up @ a_up, layer.down + 0.5 * b_down @ a_down
    torch.testing.assert_close(got, plain_experts(layer.x, layer.scores, EXPERTS, *merged))


def test_experts_without_corrections_are_the_plain_ones(layer: Layer) -> None:
    got = routed_experts(layer.x, layer.scores, EXPERTS, layer.gate_up, layer.down, as_it_is, as_it_is)
    torch.testing.assert_close(got, plain_experts(layer.x, layer.scores, EXPERTS, layer.gate_up, layer.down))


def test_gradients_of_corrected_experts_are_right(layer: Layer) -> None:
    def run(x: Tensor, scores: Tensor, *factors: Tensor) -> Tensor:
        up, down = of_all(factors[0], factors[1]), of_all(factors[2], factors[3])
        return routed_experts(x, scores, EXPERTS, layer.gate_up.detach(), layer.down.detach(), up, down)

    assert torch.autograd.gradcheck(run, (layer.x, layer.scores, *layer.factors))


def test_gradients_of_corrections_of_some_rows_are_right() -> None:
    x, y, a, b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (4, 5), (2, 2, 3), (2, 5, 2))
    )
    groups = grouped(torch.tensor([1, -1, 1, 0]), 2)
    assert torch.autograd.gradcheck(lambda *each: correct(*each, groups), (x, y, a, b))  # type: ignore[call-arg]


def test_one_correction_for_all_rows_is_that_of_a_group_of_all() -> None:
    x, y, a, b = torch.randn(4, 3), torch.randn(4, 5), torch.randn(2, 3), torch.randn(5, 2)
    all_rows = Groups(None, torch.tensor([4], dtype=torch.int32))
    torch.testing.assert_close(linear(x, y, a, b, 0.5), correct(x, y, a[None], b[None], all_rows, 0.5))


@pytest.mark.skipif(not native.available(), reason="native: needs AVX-512")
def test_packed_experts_take_the_corrections_that_plain_ones_take(layer: Layer) -> None:
    x, scores, gate_up, down = (each.detach().float() for each in layer[:4])
    up, below = of_all(*layer.factors[:2]), of_all(*layer.factors[2:])
    packed = native.pack(gate_up), native.pack(down)
    got = routed_experts(x, scores, EXPERTS, *packed, up, below)
    torch.testing.assert_close(got, routed_experts(x, scores, EXPERTS, gate_up, down, up, below), rtol=1e-5, atol=1e-5)
