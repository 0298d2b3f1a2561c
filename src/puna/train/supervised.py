"""Supervised tuning: the loss of what an assistant says, on weights or on factors.

In: a workbench. Out: the exercise. Where all weights train it is the loss of pre-training, which knows masks by
weights; elsewhere no gradient is made that nobody uses.
"""

from torch import Tensor

from puna.model.transformer import Llama
from puna.train import forward
from puna.train.next_token import Loss, NextToken
from puna.train.objective import Exercise
from puna.train.pack import Batch
from puna.train.recipe import LossRecipe
from puna.train.workbench import Workbench


def begin(bench: Workbench) -> Exercise:
    """Returns the loss of the assistant's tokens over the recipe's conversations."""
    recipe, options = bench.recipe, bench.recipe.loss
    feed = bench.feed()
    if recipe.lora is None and not recipe.model.frozen and not recipe.parallel.recompute:
        compiled = recipe.compute.compile
        loss = NextToken(bench.model, balance=options.balance, z=options.z, chunk=options.chunk, compiled=compiled)
        return Exercise(loss, feed)
    return Exercise(Supervised(bench.model, options, recompute=recipe.parallel.recompute), feed)


class Supervised:
    """An `Objective`: cross entropy by weight, of a model of which any part trains."""

    def __init__(self, model: Llama, options: LossRecipe, *, recompute: bool) -> None:
        self.model, self.options, self.recompute = model, options, recompute

    def total(self, batch: Batch) -> Tensor:
        """Returns the sum of the loss weights."""
        return batch.weights.sum()

    def tensors(self) -> dict[str, Tensor]:
        """Returns nothing: this loss remembers nothing."""
        return {}

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        states, routes = forward.hidden(self.model, batch, recompute=self.recompute)
        learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
        weights = batch.weights.flatten()[learnt]  # R
        known = forward.log_probs(self.model, states[learnt], batch.targets.flatten()[learnt], self.options.chunk)
        nats = -(known * weights).sum()
        router = forward.router_losses(routes, batch)
        weight = weights.sum()
        return Loss(
            total=nats / total_weight + (self.options.balance * router.balance + self.options.z * router.z) * share,
            nll=nats.detach() / weight.clamp(min=1e-9),
            balance=router.balance.detach(),
            weight=weight,
            load=router.load.detach(),
        )
