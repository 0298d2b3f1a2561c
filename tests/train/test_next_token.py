"""The loss equals its plain definition, reaches every parameter, and can be driven to nothing on one batch."""

import pytest
import torch
from torch.nn import functional as F

from puna.config import LlamaConfig
from puna.model.mask import Packed
from puna.model.transformer import Llama, initialise
from puna.train.next_token import NextToken, head_chunk, normalise, router_losses
from puna.train.optim import Optimizer
from puna.train.pack import Batch, DataState, Packer
from puna.train.recipe import OptimizerRecipe
from puna.train.store import Store


@pytest.fixture(scope="module")
def batch(store: Store, tiny_model_config: LlamaConfig) -> Batch:
    packer = Packer(store, tiny_model_config, rows=2, row_len=120, tiles=12, window=8, seed=1, passes={})
    return packer.next(DataState())[0]


def tiny_model(config: LlamaConfig) -> Llama:
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def gradients(model: Llama) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def plain_loss(model: Llama, batch: Batch) -> torch.Tensor:
    """Cross entropy over whole logits of the whole batch, by the definition of the mask."""
    features = model.embed_tiles(normalise(batch.tiles))
    store = Packed(model.config.text, batch.positions, batch.documents)
    logits = model(batch.ids.flatten(), batch.positions.flatten(), store, features)
    losses = F.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    return (losses * batch.weights.flatten()).sum() / batch.weights.sum()


@pytest.mark.parametrize("chunk", [16, 1000])
def test_loss_and_gradients_equal_plain_cross_entropy(batch: Batch, tiny_model_config: LlamaConfig, chunk: int) -> None:
    model = tiny_model(tiny_model_config)
    loss = NextToken(model, balance=0.0, z=0.0, chunk=chunk)(batch, batch.weights.sum())
    loss.total.backward()  # type: ignore[no-untyped-call]
    own = gradients(model)
    expected = plain_loss(model, batch)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.nll, expected.detach(), atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(own[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_token_losses_add_up_to_the_loss(batch: Batch, tiny_model_config: LlamaConfig) -> None:
    loss = NextToken(tiny_model(tiny_model_config), balance=0.0, z=0.0, chunk=16)
    losses = loss.token_losses(batch)
    assert bool((losses[batch.weights == 0] == 0).all())
    mean = losses.sum() / batch.weights.sum()  # all weights are 0 or 1
    torch.testing.assert_close(mean, loss(batch, batch.weights.sum()).nll, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_and_the_router_even_without_balance(
    batch: Batch, tiny_model_config: LlamaConfig
) -> None:
    model = tiny_model(tiny_model_config)
    NextToken(model, balance=0.0, z=0.0, chunk=64)(batch, batch.weights.sum()).total.backward()  # type: ignore[no-untyped-call]
    found = gradients(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    silent = [name for name, gradient in found.items() if not gradient.abs().sum() > 0]
    assert (
        silent == ["vision.class_token"] or not silent
    )  # one layer, whose class token is dropped: seen by the patches only


def test_batches_of_one_step_add_up_to_one_large_batch(store: Store, tiny_model_config: LlamaConfig) -> None:
    packer = Packer(store, tiny_model_config, rows=2, row_len=120, tiles=12, window=8, seed=1, passes={})
    large, _ = packer.next(DataState())
    halves = [packer.make([row]) for row in large.pieces]
    model = tiny_model(tiny_model_config)
    loss = NextToken(model, balance=0.0, z=0.0, chunk=64)
    for half in halves:
        loss(half, large.weights.sum(), share=0.5).total.backward()  # type: ignore[no-untyped-call]
    summed = gradients(model)
    loss(large, large.weights.sum()).total.backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(summed[name], gradient, atol=1e-5, rtol=1e-3)


def test_the_balance_loss_is_one_when_even_and_n_experts_when_one_gets_all() -> None:
    even = torch.eye(4)[torch.arange(8) % 4] * 20  # T E
    counts = torch.ones(8, dtype=torch.bool)
    result = router_losses(even[None], even.argmax(-1)[None, :, None], counts)
    torch.testing.assert_close(result.balance, torch.tensor(1.0))
    torch.testing.assert_close(result.load, torch.full((1, 4), 0.25))
    one = torch.tensor([20.0, 0, 0, 0]).expand(8, 4)
    torch.testing.assert_close(
        router_losses(one[None], one.argmax(-1)[None, :, None], counts).balance, torch.tensor(4.0), atol=1e-4, rtol=0.0
    )


def test_padding_counts_neither_for_load_nor_for_balance() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4)
    experts = logits.argmax(-1, keepdim=True)
    counts = torch.tensor([True] * 4 + [False] * 2)
    short = router_losses(logits[:, :4], experts[:, :4], counts[:4])
    for a, b in zip(router_losses(logits, experts, counts), short, strict=True):
        torch.testing.assert_close(a, b)


def test_the_gradients_of_a_chunk_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets, weights = torch.randint(0, 11, (5,)), torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0])
    losses = F.cross_entropy(states @ head.T, targets, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum(), (states, head))
    part = head_chunk(states.detach(), head.detach(), targets, weights)
    for actual, wanted in zip(part, (losses.detach(), *expected), strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_a_small_batch_is_learnt_by_heart(batch: Batch, tiny_model_config: LlamaConfig) -> None:
    model = tiny_model(tiny_model_config)
    recipe = OptimizerRecipe(lr=0.02, weight_decay=0.0, momentum=0.9, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0)
    optimizer = Optimizer(model.named_parameters(), recipe)
    loss = NextToken(model, balance=0.01, z=0.0, chunk=256)
    first = float(loss(batch, batch.weights.sum()).nll)
    for _ in range(30):
        last = loss(batch, batch.weights.sum())
        last.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    assert first > 5.0 and float(last.nll) < 0.35 * first / 5
